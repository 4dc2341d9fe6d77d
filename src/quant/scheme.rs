//! How a linear layer is quantized: its weight's scheme and its input's together, and the choices that have a name.

use super::input::InputScheme;
use super::weight_scheme::WeightScheme;
use crate::error::{Error, Result};

/// How a linear layer is quantized to int8. There is no default: PyTorch's way is the one whose bits are known, and
/// others are more accurate.
///
/// | preset       | weights               | inputs     | cosine of MiniLM's embeddings to fp32 | the same answer          |
/// |--------------|-----------------------|------------|--------------------------------------:|--------------------------|
/// | [`accurate`] | per channel           | per row    |                                 0.999 | in every batch           |
/// | [`portable`] | per channel, 7 bits   | per row    |                                 0.998 | in every batch, any CPU  |
/// | [`pytorch`]  | per tensor            | per tensor |                                 0.977 | as PyTorch on this CPU   |
///
/// ```
/// use fbgemm::{InputScheme, Int8Scheme, WeightScheme};
///
/// let scheme = Int8Scheme { weights: WeightScheme::new().per_channel(), inputs: InputScheme::new().per_row() };
/// assert_eq!(scheme, Int8Scheme::accurate());
/// assert_eq!("accurate".parse::<Int8Scheme>()?, scheme);
/// assert_eq!(scheme.to_string(), "weights per_channel, inputs per_row");
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// [`accurate`]: Self::accurate
/// [`portable`]: Self::portable
/// [`pytorch`]: Self::pytorch
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Int8Scheme {
    /// How the weight is quantized, once.
    pub weights: WeightScheme,
    /// How the inputs are quantized, in each call.
    pub inputs: InputScheme,
}

impl Int8Scheme {
    /// The most accurate: a scale for each output of the weight and for each row of the input, eight bits. A row's result
    /// is the same in every batch. On CPUs without VNNI, which clamp sums of two products, large values can differ.
    pub fn accurate() -> Self {
        Self { weights: WeightScheme::new().per_channel(), inputs: InputScheme::new().per_row() }
    }

    /// [`accurate`](Self::accurate) with weights of seven bits: the same bits in every batch and on every CPU.
    pub fn portable() -> Self {
        Self { weights: WeightScheme::new().per_channel().reduce_range(), inputs: InputScheme::new().per_row() }
    }

    /// PyTorch's `fbgemm_linear_quantize_weight` and `fbgemm_linear_int8_weight`: one scale for all of the weight, and one
    /// for all rows of a call.
    pub fn pytorch() -> Self {
        Self { weights: WeightScheme::new(), inputs: InputScheme::new() }
    }
}

impl std::fmt::Display for Int8Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "weights {}, inputs {}", self.weights, self.inputs)
    }
}

/// A preset's name: `accurate`, `portable` or `pytorch`.
impl std::str::FromStr for Int8Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "accurate" => Ok(Self::accurate()),
            "portable" => Ok(Self::portable()),
            "pytorch" => Ok(Self::pytorch()),
            _ => Err(Error::InvalidScheme {
                what: "layer",
                given: text.to_string(),
                expected: "accurate, portable or pytorch",
            }),
        }
    }
}

/// What a linear layer is quantized to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum LinearScheme {
    /// Weights and inputs in int8.
    Int8(Int8Scheme),
    /// Weights in fp16, inputs as they are: half of fp32's memory, not a quarter, where int8's error is too large.
    Fp16,
}

impl From<Int8Scheme> for LinearScheme {
    fn from(scheme: Int8Scheme) -> Self {
        Self::Int8(scheme)
    }
}

impl std::fmt::Display for LinearScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int8(scheme) => scheme.fmt(f),
            Self::Fp16 => f.write_str("weights fp16"),
        }
    }
}

/// `fp16`, or a preset of [`Int8Scheme`].
impl std::str::FromStr for LinearScheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(scheme) => Ok(Self::Int8(scheme)),
            Err(_) if text == "fp16" => Ok(Self::Fp16),
            Err(_) => Err(Error::InvalidScheme {
                what: "layer",
                given: text.to_string(),
                expected: "accurate, portable, pytorch or fp16",
            }),
        }
    }
}
