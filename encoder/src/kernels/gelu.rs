//! Activations: GELU in both forms, ReLU and the hyperbolic tangent.

use super::exp::exp;
use super::map;
use crate::simd::{Any, wide};

/// GELU by the error function, x·Φ(x), as PyTorch's `nn.GELU()`: within 3e-7 of it, and of 2e-7·|x| where |x| is
/// larger.
///
/// ```
/// let mut x = [-1.0, 0.0, 2.0];
/// fbgemm_encoder::kernels::gelu(&mut x);
/// assert!((x[0] - -0.15865526).abs() < 1e-6 && x[1] == 0.0 && (x[2] - 1.9544997).abs() < 1e-6);
/// ```
pub fn gelu(values: &mut [f32]) {
    wide(Any(
        #[inline(always)]
        || map(values, gelu_of),
    ));
}

/// GELU by the hyperbolic tangent, as PyTorch's `nn.GELU(approximate="tanh")`, which checkpoints name `gelu_new` or
/// `gelu_pytorch_tanh`: within 5e-7 of it, and of 2e-7·|x| where |x| is larger.
pub fn gelu_tanh(values: &mut [f32]) {
    wide(Any(
        #[inline(always)]
        || map(values, gelu_tanh_of),
    ));
}

/// The larger of each value and 0; NaN stays NaN.
pub fn relu(values: &mut [f32]) {
    wide(Any(
        #[inline(always)]
        || map(values, relu_of),
    ));
}

/// The hyperbolic tangent, within 2e-7.
pub fn tanh(values: &mut [f32]) {
    wide(Any(
        #[inline(always)]
        || map(values, tanh_of),
    ));
}

#[inline(always)]
fn gelu_of(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh_of(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_56; // of 2 / π
    let inner = ROOT * (0.044_715 * x * x).mul_add(x, x);
    // (1 + tanh u) / 2 = 1 / (1 + exp(−2u))
    x / (1.0 + exp(-2.0 * inner))
}

#[inline(always)]
fn relu_of(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn tanh_of(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function within 2e-7: the rational approximation that Eigen and XLA use.
#[inline(always)]
fn erf(x: f32) -> f32 {
    // Beyond, the result is 1 in single precision.
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let square = x * x;
    let mut above = -2.726_142_3e-10f32;
    for coefficient in
        [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_5e-4, -2.954_599_9e-3, -1.609_603_3e-2]
    {
        above = above.mul_add(square, coefficient);
    }
    let mut below = -1.456_607_2e-5f32;
    for coefficient in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        below = below.mul_add(square, coefficient);
    }
    x * above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest difference to `exact`, which is given the difference and the value.
    fn worst(run: fn(&mut [f32]), exact: fn(f64) -> f64) -> f64 {
        let x: Vec<f32> = (-120_000..=120_000).map(|i| i as f32 * 1e-4).chain([-1e4, 1e4, -1e30, 1e30]).collect();
        let mut y = x.clone();
        run(&mut y);
        let error = |(&x, &y): (&f32, &f32)| (f64::from(y) - exact(x.into())).abs() / f64::from(x.abs()).max(1.0);
        x.iter().zip(&y).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn are_near_the_exact_values_over_all_of_their_range() {
        let erf_form = worst(gelu, |x| 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2));
        let tanh_form = worst(gelu_tanh, |x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        });
        let tangent = worst(tanh, f64::tanh);
        assert!(erf_form < 3e-7 && tanh_form < 5e-7 && tangent < 2e-7, "{erf_form:e} {tanh_form:e} {tangent:e}");
    }

    #[test]
    fn nan_stays_and_every_length_is_computed() {
        for run in [gelu, gelu_tanh, relu, tanh] {
            for len in 0..70 {
                let mut values = vec![1.0; len];
                run(&mut values);
                assert!(values.iter().all(|y| *y == values[0] && (0.7..=1.0).contains(y)), "{values:?}");
            }
            let mut values = [f32::NAN, 0.0];
            run(&mut values);
            assert!(values[0].is_nan() && values[1] == 0.0);
        }
    }
}
