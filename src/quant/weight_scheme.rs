//! How a weight is quantized: what shares a scale, how many bits, and whether its range is symmetric.

use crate::error::{Error, Result};

/// How a weight is quantized. The default is PyTorch's `fbgemm_linear_quantize_weight`.
///
/// With the feature `serde` it is stored as the text that [`Display`](std::fmt::Display) gives.
///
/// ```
/// use fbgemm::{WeightScheme, quantize_weight_as};
///
/// let weight = [0.5, -1.0, 0.25, 100.0, 0.0, -50.0]; // 2 outputs, 3 inputs, one output much larger
/// let q = quantize_weight_as(&weight, 2, 3, WeightScheme::new().per_channel().symmetric().reduce_range())?;
/// assert_eq!((q.scales().len(), q.zero_points()), (2, &[0, 0][..]));
/// assert_eq!(q.saturating_pairs(), 0); // the same bits on every CPU
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightScheme {
    granularity: WeightGranularity,
    reduce_range: bool,
    symmetric: bool,
}

/// What shares a scale and a zero point of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WeightGranularity {
    /// The whole weight.
    #[default]
    PerTensor,
    /// The weights of one output feature.
    PerChannel,
}

impl WeightScheme {
    /// Eight bits, one scale and zero point for the whole weight, chosen for its smallest and largest element.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scale and a zero point for each output feature: a large weight of one output costs the others no precision.
    pub fn per_channel(self) -> Self {
        Self { granularity: WeightGranularity::PerChannel, ..self }
    }

    /// Zero points of 0, the range as far below 0 as above: scale = max |w| / 127.5 (63.5 in seven bits), as PyTorch's
    /// observers of weights choose it.
    pub fn symmetric(self) -> Self {
        Self { symmetric: true, ..self }
    }

    /// Seven bits, −64 to 63: no sum of two products leaves 16 bits, so that every CPU gives the same bits, at the cost
    /// of steps twice as large.
    pub fn reduce_range(self) -> Self {
        Self { reduce_range: true, ..self }
    }

    /// What shares a scale and a zero point.
    pub fn granularity(&self) -> WeightGranularity {
        self.granularity
    }

    /// Whether zero points are 0.
    pub fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Whether the weight has seven bits.
    pub fn is_range_reduced(&self) -> bool {
        self.reduce_range
    }

    /// How many scales a weight with this many outputs gets.
    #[cfg(feature = "safetensors")]
    pub(crate) fn channels(self, out_features: usize) -> usize {
        match self.granularity {
            WeightGranularity::PerTensor => 1,
            WeightGranularity::PerChannel => out_features,
        }
    }

    /// The smallest and the largest quantized value.
    pub(crate) fn range(self) -> (i32, i32) {
        if self.reduce_range { (-64, 63) } else { (i8::MIN.into(), i8::MAX.into()) }
    }
}

/// `per_tensor` or `per_channel`, then `symmetric`, then `reduce_range`, where they hold.
impl std::fmt::Display for WeightScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.granularity {
            WeightGranularity::PerTensor => "per_tensor",
            WeightGranularity::PerChannel => "per_channel",
        })?;
        f.write_str(if self.symmetric { " symmetric" } else { "" })?;
        f.write_str(if self.reduce_range { " reduce_range" } else { "" })
    }
}

/// The words that [`Display`](std::fmt::Display) prints, in their order.
impl std::str::FromStr for WeightScheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(' ').peekable();
        let mut scheme = match words.next() {
            Some("per_tensor") => Self::new(),
            Some("per_channel") => Self::new().per_channel(),
            _ => return Err(Error::InvalidScheme { what: "weight", given: text.to_string(), expected: EXPECTED }),
        };
        if words.next_if_eq(&"symmetric").is_some() {
            scheme = scheme.symmetric();
        }
        if words.next_if_eq(&"reduce_range").is_some() {
            scheme = scheme.reduce_range();
        }
        match words.next() {
            None => Ok(scheme),
            Some(_) => Err(Error::InvalidScheme { what: "weight", given: text.to_string(), expected: EXPECTED }),
        }
    }
}

const EXPECTED: &str = "per_tensor or per_channel, then symmetric, then reduce_range";

#[cfg(feature = "serde")]
crate::quant::stored_as_text!(WeightScheme);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_is_read_from_its_own_text() {
        for granularity in [WeightGranularity::PerTensor, WeightGranularity::PerChannel] {
            for (symmetric, reduce_range) in [(false, false), (false, true), (true, false), (true, true)] {
                let scheme = WeightScheme { granularity, reduce_range, symmetric };
                assert_eq!(scheme.to_string().parse(), Ok(scheme));
            }
        }
        for wrong in ["", "per_row", "per_channel reduced", "per_tensor reduce_range symmetric", "per_tensor "] {
            let error = wrong.parse::<WeightScheme>().unwrap_err();
            assert!(matches!(&error, Error::InvalidScheme { given, .. } if given == wrong), "{error}");
        }
    }
}
