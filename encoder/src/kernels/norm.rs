//! Layer norm with the residual before it, and scaling to unit length.

use super::{same, sum};
use crate::simd::{Any, wide};

/// Layer norm: y = (x − mean) / √(variance + ε) · gain + shift.
///
/// ```
/// let norm = fbgemm_encoder::kernels::LayerNorm::new(vec![1.0; 4], vec![0.5; 4], 1e-12);
/// let mut row = [1.0, 2.0, 3.0, 4.0];
/// norm.add_and_normalize(&mut row, &[0.0, 0.0, 0.0, 0.0]);
/// assert!((row[0] - (0.5 - 1.3416408)).abs() < 1e-6);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    gain: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// From its weight and bias, which are as long as a row, and its ε.
    ///
    /// # Panics
    /// If their lengths differ or are 0.
    pub fn new(gain: Vec<f32>, shift: Vec<f32>, epsilon: f32) -> Self {
        assert!(gain.len() == shift.len() && !gain.is_empty(), "{} gains, {} shifts", gain.len(), shift.len());
        Self { gain, shift, epsilon }
    }

    /// The length of a row.
    pub fn width(&self) -> usize {
        self.gain.len()
    }

    /// Adds `residual` to the rows and normalizes each, in place.
    ///
    /// # Panics
    /// If the two have other lengths, or are not whole rows.
    pub fn add_and_normalize(&self, rows: &mut [f32], residual: &[f32]) {
        assert_eq!(rows.len(), residual.len(), "as many values as of the residual");
        assert!(rows.len().is_multiple_of(self.width()), "{} values in rows of {}", rows.len(), self.width());
        wide(Any(
            #[inline(always)]
            || {
                for (row, residual) in rows.chunks_exact_mut(self.width()).zip(residual.chunks_exact(self.width())) {
                    for (x, more) in row.iter_mut().zip(residual) {
                        *x += more;
                    }
                    self.normalize_row(row);
                }
            },
        ));
    }

    /// Normalizes each row, in place.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub fn normalize(&self, rows: &mut [f32]) {
        assert!(rows.len().is_multiple_of(self.width()), "{} values in rows of {}", rows.len(), self.width());
        wide(Any(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(self.width()) {
                    self.normalize_row(row);
                }
            },
        ));
    }

    #[inline(always)]
    fn normalize_row(&self, row: &mut [f32]) {
        let n = row.len();
        let total = sum(row, same);
        let mean = total / n as f32;
        let squares = sum(
            row,
            #[inline(always)]
            |x| (x - mean) * (x - mean),
        );
        let variance = squares / n as f32;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        let (gain, shift) = (&self.gain[..n], &self.shift[..n]);
        for i in 0..n {
            row[i] = ((row[i] - mean) * scale).mul_add(gain[i], shift[i]);
        }
    }
}

/// Scales a vector to length 1, as PyTorch's `functional.normalize`: one shorter than 1e-12 is divided by that.
pub fn normalize(vector: &mut [f32]) {
    wide(Any(
        #[inline(always)]
        || {
            let squares = sum(
                vector,
                #[inline(always)]
                |x| x * x,
            );
            let length = squares.sqrt();
            let length = if length < 1e-12 { 1e-12 } else { length };
            for x in vector.iter_mut() {
                *x /= length;
            }
        },
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use fbgemm_testkit::random::normal;

    #[test]
    fn is_near_the_exact_value_at_every_width() {
        for width in (1..100).chain([384, 1024]) {
            let (gain, shift) = (normal(width, 1, 1.0), normal(width, 2, 1.0));
            let (x, residual) = (normal(2 * width, 3, 5.0), normal(2 * width, 4, 5.0));
            let mut y = x.clone();
            LayerNorm::new(gain.clone(), shift.clone(), 1e-5).add_and_normalize(&mut y, &residual);
            for row in 0..2 {
                let value = |i: usize| f64::from(x[row * width + i]) + f64::from(residual[row * width + i]);
                let mean = (0..width).map(value).sum::<f64>() / width as f64;
                let variance = (0..width).map(|i| (value(i) - mean).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let normal = (value(i) - mean) / (variance + 1e-5).sqrt();
                    let exact = normal * f64::from(gain[i]) + f64::from(shift[i]);
                    let y = f64::from(y[row * width + i]);
                    // Of one value alone the difference to its mean is rounding, over the root of ε.
                    let bound = if width == 1 { 1e-3 } else { 4e-6 };
                    assert!((y - exact).abs() < bound * normal.abs().max(1.0), "{y} {exact} at {i} of {width}");
                }
            }
        }
    }

    #[test]
    fn a_vector_of_zeros_stays() {
        let mut vector = [0.0; 5];
        normalize(&mut vector);
        assert_eq!(vector, [0.0; 5]);
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
    }
}
