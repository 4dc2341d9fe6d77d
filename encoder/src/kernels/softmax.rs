//! Softmax by rows.

use super::exp::exp;
use super::{LANES, add, fold, larger, map};
use crate::simd::{Any, wide};

/// Softmax of each row of `columns`, in place. Where `mask` is given, with one value for each column of all rows,
/// columns with `false` count as −∞: they get 0, and so do rows with no column left. The relative error is
/// at most 4e-6 for values that are up to 64 apart.
///
/// ```
/// let mut x = [0.0, 0.0, 5.0, 1.0, 1.0, 7.0];
/// fbgemm_encoder::kernels::softmax_rows(&mut x, 3, Some(&[true, true, false]));
/// assert_eq!(x, [0.5, 0.5, 0.0, 0.5, 0.5, 0.0]);
/// ```
///
/// # Panics
/// If the values are not whole rows, or the mask has another length than a row.
pub fn softmax_rows(values: &mut [f32], columns: usize, mask: Option<&[bool]>) {
    assert!(columns > 0 && values.len().is_multiple_of(columns), "{} values in rows of {columns}", values.len());
    if let Some(mask) = mask {
        assert_eq!(mask.len(), columns, "the mask has a value for each column");
    }
    wide(Any(
        #[inline(always)]
        || {
            for row in values.chunks_exact_mut(columns) {
                if let Some(mask) = mask {
                    for (x, keep) in row.iter_mut().zip(mask) {
                        *x = if *keep { *x } else { f32::NEG_INFINITY };
                    }
                }
                let of_all = softmax_row(row, 1.0);
                map(
                    row,
                    #[inline(always)]
                    |x| x * of_all,
                );
            }
        },
    ));
}

/// exp(scale · (x − largest)) of one row, in place, and by what to multiply them so that they add up to 1. `scale` is
/// positive.
#[inline(always)]
pub(super) fn softmax_row(row: &mut [f32], scale: f32) -> f32 {
    let (chunks, tail) = row.as_chunks_mut::<LANES>();
    let mut rest = [f32::NEG_INFINITY; LANES];
    if !tail.is_empty() {
        rest[..tail.len()].copy_from_slice(tail);
    }
    let mut most = rest;
    for chunk in chunks.iter() {
        for i in 0..LANES {
            most[i] = larger(most[i], chunk[i]);
        }
    }
    let most = fold(most, larger);
    // A row with nothing left: all are −∞, and get 0.
    let most = if most == f32::NEG_INFINITY { 0.0 } else { most };
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp((chunk[i] - most) * scale);
            sums[i] += chunk[i];
        }
    }
    if !tail.is_empty() {
        for i in 0..LANES {
            rest[i] = exp((rest[i] - most) * scale);
            sums[i] += rest[i];
        }
        tail.copy_from_slice(&rest[..tail.len()]);
    }
    let total = fold(sums, add);
    if total == 0.0 { 0.0 } else { 1.0 / total }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_near_the_exact_value_at_every_length() {
        for columns in (1..80).chain([513]) {
            let x = fbgemm_testkit::random::normal(3 * columns, columns as u64, 8.0);
            let mask: Vec<bool> = (0..columns).map(|i| i % 7 != 3).collect();
            for mask in [None, Some(&mask[..])] {
                let mut y = x.clone();
                softmax_rows(&mut y, columns, mask);
                for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact(columns)) {
                    let kept = |i: usize| mask.is_none_or(|mask| mask[i]);
                    let total: f64 = (0..columns).filter(|&i| kept(i)).map(|i| f64::from(x[i]).exp()).sum();
                    for i in 0..columns {
                        let exact = if kept(i) { f64::from(x[i]).exp() / total } else { 0.0 };
                        assert!((f64::from(y[i]) - exact).abs() <= 4e-6 * exact, "{} {exact}", y[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_with_nothing_left_is_zero() {
        let mut x = [3.0, 4.0];
        softmax_rows(&mut x, 2, Some(&[false, false]));
        assert_eq!(x, [0.0, 0.0]);
    }
}
