//! The vectorized pieces of an encoder, on slices in place, for graphs of your own too.
//!
//! They run in AVX-512 or AVX2, whichever the CPU has, with the same bits on both and on any other CPU: the order of
//! all sums and the fused multiply-adds are fixed. A row's result depends on no other row.

// Lanes by their numbers are what the compiler makes vectors of; coefficients are as their sources have them.
#![allow(clippy::needless_range_loop, clippy::excessive_precision)]

pub(crate) mod attention;
mod exp;
mod gelu;
mod norm;
mod pool;
mod product;
mod softmax;

pub use gelu::{gelu, gelu_tanh, relu, tanh};
pub use norm::{LayerNorm, normalize};
pub use pool::{max_pool, mean_pool};
pub use softmax::softmax_rows;

/// How many partial results a sum or a maximum has: a vector, or two.
const LANES: usize = 16;

/// Of two; the first where one is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn add(a: f32, b: f32) -> f32 {
    a + b
}

#[inline(always)]
fn same(x: f32) -> f32 {
    x
}

/// Each value through `of`, in place: by whole lanes, as the compiler alone would leave short slices to one value at a
/// time.
#[inline(always)]
fn map(values: &mut [f32], of: impl Fn(f32) -> f32) {
    let (chunks, tail) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = of(chunk[i]);
        }
    }
    if !tail.is_empty() {
        let mut rest = [0f32; LANES];
        rest[..tail.len()].copy_from_slice(tail);
        for i in 0..LANES {
            rest[i] = of(rest[i]);
        }
        tail.copy_from_slice(&rest[..tail.len()]);
    }
}

/// Partial results to one, in halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// What the values add up to, each through `of` first: in twice as many sums as there are lanes, so that no step waits
/// for the last.
#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    const SUMS: usize = 2 * LANES;
    let mut sums = [0f32; SUMS];
    let (chunks, tail) = values.as_chunks::<SUMS>();
    for chunk in chunks {
        for i in 0..SUMS {
            sums[i] += of(chunk[i]);
        }
    }
    if !tail.is_empty() {
        let mut rest = [0f32; SUMS];
        rest[..tail.len()].copy_from_slice(tail);
        for i in 0..SUMS {
            sums[i] += if i < tail.len() { of(rest[i]) } else { 0.0 };
        }
    }
    let mut lanes = [0f32; LANES];
    for i in 0..LANES {
        lanes[i] = sums[i] + sums[LANES + i];
    }
    fold(lanes, add)
}
