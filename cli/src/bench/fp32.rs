//! fp32 by Rust crates: `gemm` and `matrixmultiply`.

use super::contender::{Contender, Entry, Layer};
use gemm::Parallelism;

/// All of them.
pub fn entries() -> Vec<Entry> {
    let entry = |name: &str, packs, make| Entry { name: name.to_string(), int8: false, packs, make };
    vec![
        entry("gemm", false, Box::new(|layer, _, threads| Ok(Some(Box::new(Gemm::new(layer, threads, false)))))),
        // It can't take a packed weight, but is faster for some with one that lies the other way.
        entry(
            "gemm transposed",
            true,
            Box::new(|layer, _, threads| Ok(Some(Box::new(Gemm::new(layer, threads, true))))),
        ),
        entry(
            "matrixmultiply",
            false,
            // It has threads only for whole programs, by a feature and an environment variable.
            Box::new(|layer, _, threads| {
                let Layer { weight, bias, .. } = layer;
                let contender = || Box::new(MatrixMultiply { weight: weight.to_vec(), bias: bias.to_vec() }) as _;
                Ok((threads == 1).then(contender))
            }),
        ),
    ]
}

struct Gemm {
    weight: Vec<f32>,
    /// Of the weight: from an output to the next, and from an input to the next.
    strides: (usize, usize),
    bias: Vec<f32>,
    parallelism: Parallelism,
}

impl Gemm {
    fn new(layer: Layer, threads: usize, transposed: bool) -> Self {
        let Layer { weight, bias, out_features: n, in_features: k } = layer;
        let (weight, strides) = if transposed { (turned(weight, n, k), (1, n)) } else { (weight.to_vec(), (k, 1)) };
        let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
        Self { weight, strides, bias: bias.to_vec(), parallelism }
    }
}

/// The matrix, n rows of k, by columns.
fn turned(matrix: &[f32], n: usize, k: usize) -> Vec<f32> {
    const BLOCK: usize = 16; // of rows, so that whole cache lines are written
    let mut turned = vec![0.0; n * k];
    for (block, rows) in matrix.chunks(BLOCK * k).enumerate() {
        for column in 0..k {
            let to = &mut turned[column * n + block * BLOCK..];
            to.iter_mut().zip(rows.iter().skip(column).step_by(k)).for_each(|(to, from)| *to = *from);
        }
    }
    turned
}

impl Contender for Gemm {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        let Self { weight, strides, bias, parallelism } = self;
        let (n, k) = (bias.len(), weight.len() / bias.len());
        let m = input.len() / k;
        assert!(input.len() == m * k && weight.len() == n * k && output.len() == m * n);
        output.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
        let [wide, long, from_output, from_input] = [n, k, strides.0, strides.1].map(|stride| stride as isize);
        let (y, x, w) = (output.as_mut_ptr(), input.as_ptr(), weight.as_ptr());
        // SAFETY: the three matrices have the lengths that their dimensions say, asserted just above, and the weight's
        // strides are those of whole rows, or of whole columns, as `new` laid it out.
        unsafe {
            // y: m × n, x: m × k, w: k × n, each with its strides from column to column and from row to row.
            gemm::gemm(
                m,
                n,
                k,
                y,
                1,
                wide,
                true,
                x,
                1,
                long,
                w,
                from_output,
                from_input,
                1.0,
                1.0,
                false,
                false,
                false,
                *parallelism,
            );
        }
        Ok(())
    }
}

struct MatrixMultiply {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Contender for MatrixMultiply {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        let Self { weight, bias } = self;
        let (n, k) = (bias.len(), weight.len() / bias.len());
        let m = input.len() / k;
        assert!(input.len() == m * k && weight.len() == n * k && output.len() == m * n);
        output.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
        let (long, wide) = (k as isize, n as isize);
        // SAFETY: the three matrices have the lengths that their dimensions and strides say, asserted just above.
        unsafe {
            let (x, weight, y) = (input.as_ptr(), weight.as_ptr(), output.as_mut_ptr());
            matrixmultiply::sgemm(m, k, n, 1.0, x, long, 1, weight, 1, long, 1.0, y, wide, 1);
        }
        Ok(())
    }
}
