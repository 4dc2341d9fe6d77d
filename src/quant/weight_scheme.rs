//! How a weight is quantized: range, granularity, symmetry.

/// How a weight is quantized. The default is PyTorch's `fbgemm_linear_quantize_weight`.
///
/// ```
/// use fbgemm::{WeightScheme, quantize_weight_as};
///
/// let weight = [0.5, -1.0, 0.25, 100.0, 0.0, -50.0]; // 2 outputs, 3 inputs, one output much larger
/// let q = quantize_weight_as(&weight, 2, 3, WeightScheme::new().per_channel().symmetric().reduced_range())?;
/// assert_eq!((q.scales().len(), q.zero_points()), (2, &[0, 0][..]));
/// assert_eq!(q.saturating_pairs(), 0); // the same bits on every CPU
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightScheme {
    pub(crate) reduced_range: bool,
    pub(crate) per_channel: bool,
    pub(crate) symmetric: bool,
}

impl WeightScheme {
    /// Eight bits, one scale and zero point for the whole weight, chosen for its smallest and largest element.
    pub fn new() -> Self {
        Self::default()
    }

    /// Seven bits, −64 to 63: no sum of two products leaves 16 bits, so that every CPU gives the same bits, at the cost
    /// of steps twice as large.
    pub fn reduced_range(self) -> Self {
        Self { reduced_range: true, ..self }
    }

    /// A scale and a zero point for each output feature: a large weight of one output costs the others no precision.
    pub fn per_channel(self) -> Self {
        Self { per_channel: true, ..self }
    }

    /// Zero points of 0, the range as far below 0 as above: scale = max |w| / 127.5 (63.5 in seven bits), as PyTorch's
    /// observers of weights choose it.
    pub fn symmetric(self) -> Self {
        Self { symmetric: true, ..self }
    }

    /// How many scales a weight of so many outputs gets.
    #[cfg(feature = "safetensors")]
    pub(crate) fn channels(self, out_features: usize) -> usize {
        if self.per_channel { out_features } else { 1 }
    }

    /// The smallest and the largest quantized value.
    pub(crate) fn range(self) -> (i32, i32) {
        if self.reduced_range { (-64, 63) } else { (i8::MIN.into(), i8::MAX.into()) }
    }
}

/// In words: `8 bits, per tensor, affine`.
impl std::fmt::Display for WeightScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = if self.reduced_range { 7 } else { 8 };
        let granularity = if self.per_channel { "per channel" } else { "per tensor" };
        write!(f, "{bits} bits, {granularity}, {}", if self.symmetric { "symmetric" } else { "affine" })
    }
}
