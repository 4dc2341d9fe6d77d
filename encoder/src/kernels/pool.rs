//! Many rows to one: their mean or maximum.

use super::{add, larger};
use crate::simd::{Any, wide};

/// The mean of rows that are as long as `output`.
///
/// ```
/// let mut mean = [0.0; 2];
/// fbgemm_encoder::kernels::mean_pool(&[1.0, 2.0, 3.0, 6.0], &mut mean);
/// assert_eq!(mean, [2.0, 4.0]);
/// ```
///
/// # Panics
/// If there are no rows, or no whole ones.
pub fn mean_pool(rows: &[f32], output: &mut [f32]) {
    let count = check(rows, output);
    pool(rows, output, add);
    output.iter_mut().for_each(|x| *x /= count as f32);
}

/// The largest of each column of rows that are as long as `output`.
///
/// # Panics
/// If there are no rows, or no whole ones.
pub fn max_pool(rows: &[f32], output: &mut [f32]) {
    check(rows, output);
    pool(rows, output, larger);
}

fn check(rows: &[f32], output: &[f32]) -> usize {
    let (len, width) = (rows.len(), output.len());
    assert!(width > 0 && len > 0 && len.is_multiple_of(width), "{len} values in rows of {width}");
    len / width
}

#[inline(always)]
fn pool(rows: &[f32], output: &mut [f32], combine: impl Fn(f32, f32) -> f32) {
    let width = output.len();
    wide(Any(
        #[inline(always)]
        || {
            output.copy_from_slice(&rows[..width]);
            for row in rows[width..].chunks_exact(width) {
                for (all, x) in output.iter_mut().zip(row) {
                    *all = combine(*all, *x);
                }
            }
        },
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_pooled_for_itself() {
        for width in [1, 7, 32, 100] {
            let x = fbgemm_testkit::random::normal(5 * width, 1, 1.0);
            let (mut mean, mut most) = (vec![0.0; width], vec![0.0; width]);
            mean_pool(&x, &mut mean);
            max_pool(&x, &mut most);
            for i in 0..width {
                let column: Vec<f64> = (0..5).map(|row| f64::from(x[row * width + i])).collect();
                assert!((f64::from(mean[i]) - column.iter().sum::<f64>() / 5.0).abs() < 3e-7);
                assert_eq!(f64::from(most[i]), column.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            }
        }
    }
}
