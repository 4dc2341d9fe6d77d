//! How a layer's input is quantized: range, granularity, and the parameters that a calibration fixes.

use crate::range::finite_range;
use crate::{Error, Result, U8Params, cpu_support, ffi};

/// How an operation quantizes its input to unsigned integers. The default is PyTorch's `fbgemm_linear_int8_weight`:
/// eight bits, one scale and zero point for all rows of a call.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InputScheme {
    pub(crate) granularity: InputGranularity,
    pub(crate) reduced_range: bool,
    /// ATen's choice of parameters, not FBGEMM's.
    pub(crate) as_aten: bool,
}

/// What shares a scale and a zero point.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum InputGranularity {
    /// All rows of a call: a row's result depends on the rows that it comes with, as in PyTorch.
    #[default]
    PerTensor,
    /// Each row has its own: its result is the same in every batch.
    PerRow,
    /// All calls: a row's result is the same in every batch, and values beyond the range are clipped.
    Fixed {
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
    /// `torch.ao.nn.quantized.dynamic.Linear` has a [`reduced_range`](Self::reduced_range) besides.
    pub fn as_linear_dynamic(self) -> Self {
        Self { granularity: InputGranularity::PerTensor, as_aten: true, ..self }
    }

    /// A scale and a zero point for each row.
    pub fn per_row(self) -> Self {
        Self { granularity: InputGranularity::PerRow, as_aten: false, ..self }
    }

    /// The same scale and zero point in every call, as a calibration found them ([`InputObserver`]).
    ///
    /// # Errors
    /// [`Error::InvalidScale`] unless the scale and its inverse are positive and finite; [`Error::InvalidU8ZeroPoint`]
    /// unless the zero point is 0 to 255.
    pub fn fixed(self, scale: f32, zero_point: i32) -> Result<Self> {
        U8Params::new(scale, zero_point)?;
        if !(1.0 / scale).is_finite() {
            return Err(Error::InvalidScale { given: scale });
        }
        Ok(Self { granularity: InputGranularity::Fixed { scale, zero_point }, as_aten: false, ..self })
    }

    /// Seven bits, 0 to 127, PyTorch's `reduce_range`: no sum of two products leaves 16 bits, so that every CPU gives
    /// the same bits, at the cost of steps twice as large. It is for ranges that a call finds; fixed parameters are taken
    /// as they are.
    pub fn reduced_range(self) -> Self {
        Self { reduced_range: true, ..self }
    }

    /// What shares a scale and a zero point.
    pub fn granularity(&self) -> InputGranularity {
        self.granularity
    }

    /// Whether the input has seven bits.
    pub fn is_reduced(&self) -> bool {
        self.reduced_range
    }

    /// Whether products with any weight fit 16 bits by pairs.
    pub(crate) fn never_saturates(&self) -> bool {
        self.reduced_range && !matches!(self.granularity, InputGranularity::Fixed { .. })
    }

    /// The parameters for values in this range.
    pub(crate) fn choose(&self, (min, max): (f32, f32)) -> Result<ffi::TensorQuantizationParams> {
        if let InputGranularity::Fixed { scale, zero_point } = self.granularity {
            // FBGEMM adds the zero point in 32 bits, where steps beyond them wrap around to the other end.
            const MOST_STEPS: f32 = 2_147_483_000.0;
            let inverse = 1.0 / scale;
            if max * inverse > MOST_STEPS {
                return Err(Error::ScaleOverflow { input: max, weight: inverse });
            }
            let mut params = ffi::choose_quantization_params(0.0, 1.0, 0, u8::MAX.into())?;
            (params.scale, params.zero_point) = (scale, zero_point);
            return Ok(params);
        }
        let mut params = ffi::choose_quantization_params(min, max, 0, if self.reduced_range { 127 } else { 255 })?;
        if self.as_aten {
            (params.scale, params.zero_point) = choose_as_aten(min, max, self.reduced_range);
        }
        Ok(params)
    }
}

/// As files have it: `per_tensor`, `aten`, `per_row` or `fixed SCALE ZERO_POINT`, and `reduced` behind.
impl std::fmt::Display for InputScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.granularity {
            InputGranularity::PerTensor if self.as_aten => f.write_str("aten")?,
            InputGranularity::PerTensor => f.write_str("per_tensor")?,
            InputGranularity::PerRow => f.write_str("per_row")?,
            // Rust prints as many digits as give the same float back.
            InputGranularity::Fixed { scale, zero_point } => write!(f, "fixed {scale} {zero_point}")?,
        }
        f.write_str(if self.reduced_range { " reduced" } else { "" })
    }
}

impl std::str::FromStr for InputScheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidInputScheme { given: text.to_string() };
        let mut words: Vec<&str> = text.split(' ').collect();
        let mut scheme = Self::new();
        if words.last() == Some(&"reduced") {
            words.pop();
            scheme = scheme.reduced_range();
        }
        match words[..] {
            ["per_tensor"] => Ok(scheme),
            ["aten"] => Ok(scheme.as_linear_dynamic()),
            ["per_row"] => Ok(scheme.per_row()),
            ["fixed", scale, zero_point] => {
                let scale = scale.parse().map_err(|_| invalid())?;
                scheme.fixed(scale, zero_point.parse().map_err(|_| invalid())?)
            }
            _ => Err(invalid()),
        }
    }
}

/// ATen's choice of scale and zero point, for PyTorch's newer operators: unlike FBGEMM's, the zero point comes from a
/// scale in double precision, and the errors of its two candidates are differences (`quant_utils` in ATen).
pub(crate) fn choose_as_aten(min: f32, max: f32, reduced_range: bool) -> (f32, i32) {
    const SMALLEST: f32 = 6.1e-5;
    let (mut min, mut max) = (min.min(0.0), max.max(0.0));
    let (qmin, qmax): (f64, f64) = (0.0, if reduced_range { 127.0 } else { 255.0 });
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
    (scale as f32, zero_point.clamp(qmin, qmax).round_ties_even() as i32)
}

/// Collects the inputs that a layer sees, to fix its parameters for all calls ([`InputScheme::fixed`]): from their
/// smallest and largest, or, where a few values lie far out, from percentiles.
///
/// ```
/// use fbgemm::{InputObserver, QuantizedLinear};
///
/// let layer = QuantizedLinear::new(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], None, 2, 3)?;
/// let mut observer = InputObserver::new();
/// for sample in [[1.0, 2.0, 3.0], [-1.0, 0.5, 2.5]] {
///     observer.observe(&sample)?;
/// }
/// let layer = layer.with_input(observer.scheme()?);
/// let together: Vec<f32> = layer.forward(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0])?;
/// let alone: Vec<f32> = layer.forward(&[-1.0, 0.0, 1.0])?;
/// assert_eq!(together[2..], alone);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct InputObserver {
    min: f32,
    max: f32,
    /// How many values fell into each of `BINS` equal parts of −reach to reach.
    counts: Vec<u64>,
    reach: f32,
    count: u64,
}

const BINS: usize = 4096;

impl Default for InputObserver {
    fn default() -> Self {
        Self { min: 0.0, max: 0.0, counts: vec![0; BINS], reach: 0.0, count: 0 }
    }
}

impl InputObserver {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an input of the layer: any number of values.
    ///
    /// # Errors
    /// [`Error::NotFinite`], and those of [`cpu_support`]; nothing of the input is then taken in.
    pub fn observe(&mut self, input: &[f32]) -> Result<()> {
        let (min, max) = finite_range(input, "input", cpu_support()?)?;
        (self.min, self.max) = (self.min.min(min), self.max.max(max));
        let reach = min.abs().max(max.abs());
        if self.reach == 0.0 && reach > 0.0 {
            // All before were zeros, which lie in the middle whatever the reach.
            self.reach = reach;
        }
        while self.reach < reach {
            // Twice as far: two parts become one.
            let halved: Vec<u64> = self.counts.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
            self.counts.fill(0);
            self.counts[BINS / 4..3 * BINS / 4].copy_from_slice(&halved);
            self.reach *= 2.0;
        }
        let to_bin = if self.reach > 0.0 { (BINS / 2) as f32 / self.reach } else { 0.0 };
        for &x in input {
            let bin = (x * to_bin + (BINS / 2) as f32) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
        self.count += input.len() as u64;
        Ok(())
    }

    /// Parameters for all that was seen, from the smallest to the largest.
    ///
    /// # Errors
    /// [`Error::NothingObserved`].
    pub fn scheme(&self) -> Result<InputScheme> {
        self.for_range(self.min, self.max)
    }

    /// Parameters for the middle `share` (0.999, say) of what was seen: the rest, half of it at each end, is clipped. To
    /// within 1/2048 of the largest magnitude.
    ///
    /// # Errors
    /// [`Error::NothingObserved`]; [`Error::InvalidShare`] unless `share` is above 0 and at most 1.
    pub fn scheme_for(&self, share: f64) -> Result<InputScheme> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::InvalidShare { given: share });
        }
        let beyond = ((1.0 - share) / 2.0 * self.count as f64) as u64;
        let edge = |bin: usize| (bin as f32 / (BINS / 2) as f32 - 1.0) * self.reach;
        // The first part at whose end more than `beyond` have been seen.
        let first = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut seen = 0;
            counts
                .take_while(|&&count| {
                    seen += count;
                    seen <= beyond
                })
                .count()
        };
        let low = edge(first(&mut self.counts.iter())).max(self.min);
        let high = edge(BINS - first(&mut self.counts.iter().rev())).min(self.max);
        self.for_range(low, high)
    }

    fn for_range(&self, low: f32, high: f32) -> Result<InputScheme> {
        if self.count == 0 {
            return Err(Error::NothingObserved);
        }
        let params = ffi::choose_quantization_params(low, high, 0, u8::MAX.into())?;
        InputScheme::new().fixed(params.scale, params.zero_point)
    }
}
