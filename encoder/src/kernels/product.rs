//! Products of small matrices in tiles that stay in registers: those of an attention's heads.

use crate::simd::Simd;

/// How many rows a tile has: with two vectors of columns, the sums take 12 registers.
pub(super) const ROWS: usize = 6;

/// Views of a matrix by rows: where it starts is where the slice does.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) values: &'a [f32],
    /// From one row's start to the next one's.
    pub(super) stride: usize,
}

impl<'a> View<'a> {
    #[inline(always)]
    fn row(&self, row: usize, column: usize, len: usize) -> &'a [f32] {
        &self.values[row * self.stride + column..][..len]
    }
}

/// `c` = a · b, or that added to `c` where `add`: a `rows` × `depth`, b `depth` × `columns`, c with rows of `stride`.
/// Each sum is taken in the order of the depth, whatever the tile: the depth in two calls gives the bits of one.
#[inline(always)]
pub(super) fn multiply<S: Simd>(
    simd: S,
    a: View,
    b: View,
    c: &mut [f32],
    stride: usize,
    add: bool,
    (rows, depth, columns): (usize, usize, usize),
) {
    let mut row = 0;
    while row < rows {
        let a = View { values: &a.values[row * a.stride..], stride: a.stride };
        let c = &mut c[row * stride..];
        row += match rows - row {
            ROWS.. => multiply_rows::<S, ROWS>(simd, a, b, c, stride, add, (depth, columns)),
            3.. => multiply_rows::<S, 3>(simd, a, b, c, stride, add, (depth, columns)),
            _ => multiply_rows::<S, 1>(simd, a, b, c, stride, add, (depth, columns)),
        };
    }
}

/// The first `R` rows; gives their number.
#[inline(always)]
fn multiply_rows<S: Simd, const R: usize>(
    simd: S,
    a: View,
    b: View,
    c: &mut [f32],
    stride: usize,
    add: bool,
    (depth, columns): (usize, usize),
) -> usize {
    let mut column = 0;
    while column + 2 * S::F32_LANES <= columns {
        tile::<S, R, 2>(simd, a, b, c, stride, add, (depth, column));
        column += 2 * S::F32_LANES;
    }
    if column + S::F32_LANES <= columns {
        tile::<S, R, 1>(simd, a, b, c, stride, add, (depth, column));
        column += S::F32_LANES;
    }
    // What is left of a row that is not whole vectors.
    for column in column..columns {
        for row in 0..R {
            let a = a.row(row, 0, depth);
            let product = |sum: f32, k: usize| a[k].mul_add(b.values[k * b.stride + column], sum);
            let c = &mut c[row * stride + column];
            *c = (0..depth).fold(if add { *c } else { 0.0 }, product);
        }
    }
    R
}

/// `R` rows and `V` vectors of columns.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: View,
    b: View,
    c: &mut [f32],
    stride: usize,
    add: bool,
    (depth, column): (usize, usize),
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    if add {
        for row in 0..R {
            let c = S::as_simd_f32s(&c[row * stride + column..][..V * S::F32_LANES]).0;
            sums[row].copy_from_slice(&c[..V]);
        }
    }
    let mut rows = [&a.values[..0]; R];
    for row in 0..R {
        rows[row] = a.row(row, 0, depth);
    }
    for k in 0..depth {
        let b = S::as_simd_f32s(b.row(k, column, V * S::F32_LANES)).0;
        for row in 0..R {
            let x = simd.splat_f32s(rows[row][k]);
            for i in 0..V {
                sums[row][i] = simd.mul_add_f32s(x, b[i], sums[row][i]);
            }
        }
    }
    for row in 0..R {
        let c = S::as_mut_simd_f32s(&mut c[row * stride + column..][..V * S::F32_LANES]).0;
        c[..V].copy_from_slice(&sums[row]);
    }
}
