//! How an input is quantized: what shares a scale, how many bits, and where the input's scale and zero point are chosen.

use crate::error::{Error, Result};
use crate::ffi::{Params, quantize};

/// What a tensor of unsigned 8 bits stands for: `real = scale * (q - zero_point)`.
///
/// PyTorch keeps a `quint8` tensor's scale as a double, and computes with the nearest float: `q_scale as f32`.
///
/// ```
/// let params = fbgemm::U8Params::new(0.05, 128)?;
/// assert_eq!((params.scale(), params.zero_point()), (0.05, 128));
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct U8Params {
    scale: f32,
    zero_point: i32,
}

impl U8Params {
    /// Checks them, which PyTorch does not.
    ///
    /// # Errors
    /// [`Error::InvalidScale`] unless the scale is positive and finite; [`Error::InvalidU8ZeroPoint`] unless the zero
    /// point is 0 to 255.
    pub fn new(scale: f32, zero_point: i32) -> Result<Self> {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::InvalidScale { given: scale });
        }
        if !(0..=255).contains(&zero_point) {
            return Err(Error::InvalidU8ZeroPoint { given: zero_point });
        }
        Ok(Self { scale, zero_point })
    }

    /// The size of one step.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The quantized value that stands for 0.
    pub fn zero_point(&self) -> i32 {
        self.zero_point
    }
}

/// How an operation quantizes its input to unsigned integers. The default is PyTorch's `fbgemm_linear_int8_weight`:
/// eight bits, one scale and zero point for all rows of a call.
///
/// With the feature `serde` it is stored as in files: the text that [`Display`](std::fmt::Display) gives.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct InputScheme {
    granularity: InputGranularity,
    reduce_range: bool,
    /// ATen's choice of parameters, not FBGEMM's.
    as_aten: bool,
}

/// What shares a scale and a zero point.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum InputGranularity {
    /// All rows of a call: a row's result depends on the rows that it comes with, as in PyTorch.
    #[default]
    PerTensor,
    /// Each row has its own: its result is the same in every batch.
    PerRow,
    /// All calls: a row's result is the same in every batch, and values beyond the range are clipped.
    Static {
        /// The size of one step.
        scale: f32,
        /// The quantized value, 0 to 255, that stands for 0.
        zero_point: i32,
    },
}

impl InputScheme {
    /// Eight bits, per tensor.
    pub fn new() -> Self {
        Self::default()
    }

    /// As PyTorch's `quantized::linear_dynamic`: per tensor, by ATen's choice of parameters.
    /// `torch.ao.nn.quantized.dynamic.Linear` has a [`reduce_range`](Self::reduce_range) besides.
    pub fn as_linear_dynamic(self) -> Self {
        Self { granularity: InputGranularity::PerTensor, as_aten: true, ..self }
    }

    /// A scale and a zero point for each row.
    pub fn per_row(self) -> Self {
        Self { granularity: InputGranularity::PerRow, as_aten: false, ..self }
    }

    /// The same scale and zero point in every call, as a calibration found them ([`InputObserver`](crate::InputObserver)).
    ///
    /// # Errors
    /// [`Error::InvalidScale`] unless the scale and its inverse are positive and finite; [`Error::InvalidU8ZeroPoint`]
    /// unless the zero point is 0 to 255.
    pub fn static_params(self, scale: f32, zero_point: i32) -> Result<Self> {
        U8Params::new(scale, zero_point)?;
        if !(1.0 / scale).is_finite() {
            return Err(Error::InvalidScale { given: scale });
        }
        Ok(Self { granularity: InputGranularity::Static { scale, zero_point }, as_aten: false, ..self })
    }

    /// Seven bits, 0 to 127, PyTorch's `reduce_range`: no sum of two products leaves 16 bits, so that every CPU gives
    /// the same bits, at the cost of steps twice as large. It applies to ranges found in a call; static
    /// parameters are taken as they are.
    pub fn reduce_range(self) -> Self {
        Self { reduce_range: true, ..self }
    }

    /// What shares a scale and a zero point.
    pub fn granularity(&self) -> InputGranularity {
        self.granularity
    }

    /// Whether the input has seven bits.
    pub fn is_range_reduced(&self) -> bool {
        self.reduce_range
    }

    /// Whether products with any weight fit 16 bits by pairs.
    pub(crate) fn never_saturates(&self) -> bool {
        self.reduce_range && !matches!(self.granularity, InputGranularity::Static { .. })
    }

    /// The parameters for values in this range.
    ///
    /// # Errors
    /// [`Error::InputOverflow`].
    pub(crate) fn choose(&self, (min, max): (f32, f32)) -> Result<Params> {
        if let InputGranularity::Static { scale, zero_point } = self.granularity {
            // FBGEMM adds the zero point in 32 bits, where steps beyond them wrap around to the other end.
            const MOST_STEPS: f32 = 2_147_483_000.0;
            let steps = max * (1.0 / scale);
            if steps > MOST_STEPS {
                return Err(Error::InputOverflow { value: max, scale, steps });
            }
            return Ok(Params { scale, zero_point });
        }
        if self.as_aten {
            return Ok(choose_as_aten(min, max, self.reduce_range));
        }
        quantize::choose(min, max, 0, if self.reduce_range { 127 } else { 255 })
    }
}

/// As files have it: `per_tensor`, `aten`, `per_row` or `static SCALE ZERO_POINT`, then `reduce_range` where it holds.
impl std::fmt::Display for InputScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.granularity {
            InputGranularity::PerTensor if self.as_aten => f.write_str("aten")?,
            InputGranularity::PerTensor => f.write_str("per_tensor")?,
            InputGranularity::PerRow => f.write_str("per_row")?,
            // Rust prints as many digits as give the same float back.
            InputGranularity::Static { scale, zero_point } => write!(f, "static {scale} {zero_point}")?,
        }
        f.write_str(if self.reduce_range { " reduce_range" } else { "" })
    }
}

impl std::str::FromStr for InputScheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "per_tensor, aten, per_row or static SCALE ZERO_POINT, then reduce_range";
        let invalid = || Error::InvalidScheme { what: "input", given: text.to_string(), expected };
        let mut words: Vec<&str> = text.split(' ').collect();
        let mut scheme = Self::new();
        // The second words are those of earlier versions' files.
        if let Some(&"reduce_range" | &"reduced") = words.last() {
            words.pop();
            scheme = scheme.reduce_range();
        }
        match words[..] {
            ["per_tensor"] => Ok(scheme),
            ["aten"] => Ok(scheme.as_linear_dynamic()),
            ["per_row"] => Ok(scheme.per_row()),
            ["static" | "fixed", scale, zero_point] => {
                let scale = scale.parse().map_err(|_| invalid())?;
                scheme.static_params(scale, zero_point.parse().map_err(|_| invalid())?)
            }
            _ => Err(invalid()),
        }
    }
}

/// ATen's choice of scale and zero point, for PyTorch's newer operators: unlike FBGEMM's, the zero point comes from a
/// scale in double precision, and the errors of its two candidates are differences (`quant_utils` in ATen).
fn choose_as_aten(min: f32, max: f32, reduce_range: bool) -> Params {
    const SMALLEST: f32 = 6.1e-5;
    let (mut min, mut max) = (min.min(0.0), max.max(0.0));
    let (qmin, qmax): (f64, f64) = (0.0, if reduce_range { 127.0 } else { 255.0 });
    let mut scale = (f64::from(max) - f64::from(min)) / (qmax - qmin);
    if scale as f32 == 0.0 || (1.0 / scale as f32).is_infinite() {
        scale = 0.1;
    }
    if scale < f64::from(SMALLEST) {
        let amplify = SMALLEST / scale as f32;
        scale = f64::from(SMALLEST);
        let widest = SMALLEST * (qmax - qmin) as f32;
        if min == 0.0 {
            max = widest;
        } else if max == 0.0 {
            min = -widest;
        } else {
            (min, max) = (min * amplify, max * amplify);
        }
    }
    let (low, high) = (f64::from(min) / scale, f64::from(max) / scale);
    let (from_low, from_high) = (qmin - low, qmax - high);
    let nearer_low = qmin.abs() - low.abs() < qmax.abs() - high.abs();
    let zero_point = if nearer_low { from_low } else { from_high };
    Params { scale: scale as f32, zero_point: zero_point.clamp(qmin, qmax).round_ties_even() as i32 }
}

#[cfg(feature = "serde")]
crate::quant::stored_as_text!(InputScheme);
