//! The exponential function, without a branch, so that the compiler makes vectors of it.

/// eˣ with a relative error of at most 1.2e-7 where it is no subnormal number; below −87.3 it is 0, above 88.3
/// infinite. NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // So that n, below, is the exponent of a normal number.
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.37;
    // Adding it rounds to an integer, in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let bounded = if x < LOWEST { LOWEST } else { x };
    let bounded = if bounded > HIGHEST { HIGHEST } else { bounded };
    // x = n·ln 2 + r, |r| at most half of ln 2.
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, bounded);
    let r = n.mul_add(-LN2_LOW, r);
    // eʳ = 1 + r + r²·p(r), by a polynomial of Cephes.
    let mut p = 1.987_569_2e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1] {
        p = p.mul_add(r, coefficient);
    }
    let fraction = p.mul_add(r * r, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(1f32.to_bits()));
    let result = fraction * power;
    let result = if x < LOWEST { 0.0 } else { result };
    if x > HIGHEST { f32::INFINITY } else { result }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn is_near_the_exact_value_over_all_of_its_range() {
        let mut worst = 0f64;
        let mut x = -87.3f32;
        while x < 88.37 {
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
            x += 0.000_37;
        }
        assert!(worst < 1.2e-7, "{worst:e}");
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(88.4), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.37).is_finite() && exp(-87.33) > 0.0);
    }
}
