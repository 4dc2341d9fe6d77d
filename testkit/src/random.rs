//! Made-up numbers, the same on every run and machine.

/// Normally distributed numbers of this standard deviation, the same for the same seed.
pub fn normal(len: usize, seed: u64, deviation: f32) -> Vec<f32> {
    let mut state = seed;
    // SplitMix64; the upper half, in (0, 1).
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 32) as f32 + 0.5) / 4_294_967_296.0
    };
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        // Box and Muller: two at a time. libm's functions give the same bits everywhere; the logarithm's argument is
        // at most 1, where its root is 0.
        let radius = (-2.0 * libm::logf(uniform())).sqrt() * deviation;
        let (sine, cosine) = libm::sincosf(std::f32::consts::TAU * uniform());
        values.extend([radius * cosine, radius * sine]);
    }
    values.truncate(len);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_deviation_asked_for_and_depend_on_the_seed_alone() {
        let values = normal(100_001, 7, 2.0);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.05 && (variance - 4.0).abs() < 0.1, "{mean} {variance}");
        assert_eq!(normal(5, 7, 2.0), values[..5]);
        assert_ne!(normal(5, 8, 2.0), values[..5]);
        assert!(normal(0, 1, 1.0).is_empty());
    }
}
