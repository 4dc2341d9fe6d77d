//! How results are compared: by their bits, or by how far they are apart.

/// The bits of each value: NaNs with other bits differ, as do the two zeros.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// ‖y − exact‖ / ‖exact‖; 0 where there is no difference, even from zeros.
///
/// # Panics
/// Where the lengths differ.
pub fn relative_error<T: Copy + Into<f64>>(y: &[f32], exact: &[T]) -> f64 {
    assert_eq!(y.len(), exact.len(), "as many results as exact values");
    let pairs = || y.iter().zip(exact).map(|(y, exact)| (f64::from(*y), (*exact).into()));
    let error: f64 = pairs().map(|(y, exact)| (y - exact).powi(2)).sum();
    let size: f64 = pairs().map(|(_, exact)| exact.powi(2)).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}

/// The cosine of the angle between two vectors of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_is_in_the_error() {
        let exact = [3.0, -4.0];
        assert_eq!(relative_error(&[3.0, -4.0], &exact), 0.0);
        assert_eq!(relative_error(&[3.0, -3.5], &exact), 0.1);
        assert!(relative_error(&[f32::NAN, -4.0], &exact).is_nan());
        assert_eq!(relative_error(&[0.0], &[0f32]), 0.0);
    }
}
