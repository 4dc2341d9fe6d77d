//! A weight matrix quantized to int8, per tensor, with the numbers that an operation needs beside it.

use super::element::{Element, in_pieces, range};
use super::saturation::row_sums;
use super::weight_scheme::{WeightGranularity, WeightScheme};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::{check_int8_shape, quantize, scratch};
use std::hash::Hasher;

/// All of a quantized weight but its values: what an operation needs beside the packed matrix.
#[derive(Clone)]
pub(crate) struct Parameters {
    /// One for the whole weight, or one for each output; as many zero points.
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<i32>,
    /// Which of the two it is when there is one output, since FBGEMM rounds them differently ([`crate::linear_static`]).
    pub(crate) per_channel: bool,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    /// For each row n, Σₖ q\[n, k\] − zero_point · in_features.
    pub(crate) col_offsets: Vec<i32>,
    /// The largest `reach` and `clamp` of any row, and all rows' `saturating`: see [`row_sums`].
    reach: u64,
    clamp: u64,
    pub(crate) saturating_pairs: u64,
    /// The largest scale of any output.
    pub(crate) largest_scale: f32,
    pub(crate) fingerprint: u64,
}

impl PartialEq for Parameters {
    /// Equal if they are of the same weight. `per_channel` is left out: a stored weight with one output does not tell it.
    fn eq(&self, other: &Self) -> bool {
        let all = |p: &Self| (p.out_features, p.in_features, p.fingerprint);
        all(self) == all(other) && self.scales == other.scales && self.zero_points == other.zero_points
    }
}

impl Parameters {
    fn of(
        data: &[i8],
        scales: Vec<f32>,
        zero_points: Vec<i32>,
        per_channel: bool,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        let mut col_offsets = Vec::with_capacity(out_features);
        let (mut reach, mut clamp, mut saturating_pairs) = (0, 0, 0);
        // One for all rows, or each row's own.
        let of_rows = zero_points.iter().cycle();
        for (row, &zero_point) in data.chunks_exact(in_features).zip(of_rows) {
            let sums = row_sums(row, zero_point);
            let offset = i32::try_from(sums.col_offset);
            col_offsets.push(offset.map_err(|_| Error::AccumulatorOverflow { bound: sums.col_offset.unsigned_abs() })?);
            reach = reach.max(sums.reach);
            clamp = clamp.max(sums.clamp);
            saturating_pairs += sums.saturating;
        }
        let largest_scale = scales.iter().copied().fold(0.0, f32::max);
        let fingerprint = fingerprint(data, out_features, in_features);
        Ok(Self {
            scales,
            zero_points,
            per_channel,
            out_features,
            in_features,
            col_offsets,
            reach,
            clamp,
            saturating_pairs,
            largest_scale,
            fingerprint,
        })
    }

    /// Checks that no int32 sum can wrap around for an input with this zero point, which PyTorch does not check, and
    /// returns the largest magnitude that a sum can have.
    pub(crate) fn check_sums(&self, input_zero_point: i32) -> Result<u64> {
        let steps = input_zero_point.max(255 - input_zero_point).unsigned_abs();
        let bound = self.reach * u64::from(steps) + self.clamp;
        if bound > i32::MAX as u64 { Err(Error::AccumulatorOverflow { bound }) } else { Ok(bound) }
    }

    /// The weight that these parameters belong to, given back by a packed matrix.
    pub(crate) fn with_data(&self, data: Vec<i8>) -> QuantizedWeight {
        debug_assert_eq!(fingerprint(&data, self.out_features, self.in_features), self.fingerprint);
        QuantizedWeight { data, parameters: self.clone() }
    }
}

/// The weight of a linear layer in int8: `real = scale * (q - zero_point)`, one scale and zero point for the whole
/// matrix, as PyTorch's `fbgemm_linear_quantize_weight` makes it, or for each output ([`WeightScheme`]). Immutable,
/// portable between CPUs, and whole: the column offsets are always those of the data.
#[derive(Clone, PartialEq)]
pub struct QuantizedWeight {
    data: Vec<i8>,
    parameters: Parameters,
}

impl QuantizedWeight {
    /// A weight that is quantized already, with one scale and zero point: `data` has `out_features` rows of `in_features`.
    ///
    /// ```
    /// let q = fbgemm::QuantizedWeight::per_tensor(vec![1, -2, 3, 4, -5, 6], 0.5, 1, 2, 3)?;
    /// assert_eq!(q.col_offsets(), [1 - 2 + 3 - 3, 4 - 5 + 6 - 3]);
    /// q.check_col_offsets(&[-1, 2])?; // as stored beside it
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ZeroDimension`], [`Error::WrongLength`], [`Error::TooLarge`], [`Error::InvalidScale`],
    /// [`Error::InvalidZeroPoint`], [`Error::AccumulatorOverflow`].
    pub fn per_tensor(
        data: Vec<i8>,
        scale: f32,
        zero_point: i32,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        Self::checked(data, vec![scale], vec![zero_point], false, out_features, in_features)
    }

    /// [`per_tensor`](Self::per_tensor) with a scale and a zero point for each output feature.
    ///
    /// # Errors
    /// As [`per_tensor`](Self::per_tensor).
    pub fn per_channel(
        data: Vec<i8>,
        scales: Vec<f32>,
        zero_points: Vec<i32>,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        Self::checked(data, scales, zero_points, true, out_features, in_features)
    }

    fn checked(
        data: Vec<i8>,
        scales: Vec<f32>,
        zero_points: Vec<i32>,
        per_channel: bool,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        check_int8_shape("weight", data.len(), out_features, in_features)?;
        let channels = if per_channel { out_features } else { 1 };
        for (what, given) in [("scales", scales.len()), ("zero_points", zero_points.len())] {
            if given != channels {
                return Err(Error::WrongLength { what, given, expected: channels });
            }
        }
        if let Some(&given) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
            return Err(Error::InvalidScale { given });
        }
        if let Some(&given) = zero_points.iter().find(|zero_point| !(-128..=127).contains(*zero_point)) {
            return Err(Error::InvalidZeroPoint { given });
        }
        let parameters = Parameters::of(&data, scales, zero_points, per_channel, out_features, in_features)?;
        Ok(Self { data, parameters })
    }

    /// From a stored layer's parts: a single scale is the whole weight's, also where there is one output.
    #[cfg(any(feature = "safetensors", feature = "serde"))]
    pub(crate) fn from_stored(
        data: Vec<i8>,
        col_offsets: &[i32],
        scales: Vec<f32>,
        zero_points: Vec<i32>,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        let per_channel = scales.len() > 1;
        let weight = Self::checked(data, scales, zero_points, per_channel, out_features, in_features)?;
        weight.check_col_offsets(col_offsets)?;
        Ok(weight)
    }

    /// Checks that stored column offsets are this weight's: others are a sign of damage.
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::ForeignColOffsets`].
    pub fn check_col_offsets(&self, col_offsets: &[i32]) -> Result<()> {
        let own = self.col_offsets();
        if col_offsets.len() != own.len() {
            let (given, expected) = (col_offsets.len(), own.len());
            return Err(Error::WrongLength { what: "col_offsets", given, expected });
        }
        match col_offsets.iter().zip(own).position(|(given, expected)| given != expected) {
            None => Ok(()),
            Some(index) => Err(Error::ForeignColOffsets { index, given: col_offsets[index], expected: own[index] }),
        }
    }

    /// The quantized values, `out_features` rows of `in_features`.
    pub fn data(&self) -> &[i8] {
        &self.data
    }

    /// For each output feature n, Σₖ data\[n, k\] − zero_point · in_features.
    pub fn col_offsets(&self) -> &[i32] {
        &self.parameters.col_offsets
    }

    /// The size of one quantization step; where each output has its own ([`scales`](Self::scales)), the first's.
    /// PyTorch gives it as a double that holds exactly this float.
    pub fn scale(&self) -> f32 {
        self.parameters.scales[0]
    }

    /// The quantized value, −128 to 127, that stands for 0; where each output has its own, the first's.
    pub fn zero_point(&self) -> i32 {
        self.parameters.zero_points[0]
    }

    /// One scale for the whole weight, or one for each output feature.
    pub fn scales(&self) -> &[f32] {
        &self.parameters.scales
    }

    /// The zero points, one for each of the [`scales`](Self::scales).
    pub fn zero_points(&self) -> &[i32] {
        &self.parameters.zero_points
    }

    /// The number of rows: outputs of the layer.
    pub fn out_features(&self) -> usize {
        self.parameters.out_features
    }

    /// The number of columns: inputs of the layer.
    pub fn in_features(&self) -> usize {
        self.parameters.in_features
    }

    /// How many of the `out_features` · ⌈`in_features` / 2⌉ pairs of neighbouring weights can, with some input, make a
    /// sum of two products that leaves 16 bits, which CPUs without VNNI clamp
    /// ([`Isa::sums_pairs_exactly`](crate::Isa::sums_pairs_exactly)): those whose positive parts add up to at least
    /// 129, or whose negative parts to at most −129. With 0 every kind of CPU gives the same bits.
    pub fn saturating_pairs(&self) -> u64 {
        self.parameters.saturating_pairs
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The plain values and the parameters, apart.
    pub(crate) fn into_parts(self) -> (Vec<i8>, Parameters) {
        (self.data, self.parameters)
    }
}

impl std::fmt::Debug for QuantizedWeight {
    /// The shape and parameters, not a screenful of numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizedWeight")
            .field("out_features", &self.out_features())
            .field("in_features", &self.in_features())
            .field("scale", &self.scale())
            .field("zero_point", &self.zero_point())
            .finish_non_exhaustive()
    }
}

/// Quantizes a weight matrix to int8 with one scale and zero point, bit-identical to PyTorch's
/// `fbgemm_linear_quantize_weight`.
///
/// `weight` is row-major, `out_features` rows of `in_features` (as PyTorch's `nn.Linear.weight`). With
/// lo = min(0, smallest) and hi = max(0, largest): scale = (hi − lo) / 255, zero_point such that 0 is exact,
/// q = clamp(round(w · (1 / scale)) + zero_point, −128, 127), ties to even. A matrix of zeros gets scale 0.1, and
/// scales below 6.1e-5 are raised to it (FBGEMM's `ChooseQuantizationParams`). A weight in `f64`, `half::f16` or
/// `half::bf16` is rounded to `f32` first, piece by piece.
///
/// ```
/// let weight = [0.5, -1.0, 0.25, 1.5, 0.0, -0.5]; // 2 outputs, 3 inputs
/// let q = fbgemm::quantize_weight(&weight, 2, 3)?;
/// assert_eq!((q.scale(), q.zero_point()), (2.5 / 255.0, -26));
/// assert_eq!(q.data(), [25, -128, 0, 127, -26, -77]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::ZeroDimension`], [`Error::WrongLength`], [`Error::TooLarge`]; [`Error::NotFinite`] for a NaN or infinite
/// weight; [`Error::AccumulatorOverflow`] where a column offset doesn't fit int32 (over 8 million in_features); and
/// those of [`cpu_support`](crate::cpu_support).
pub fn quantize_weight<T: Element>(weight: &[T], out_features: usize, in_features: usize) -> Result<QuantizedWeight> {
    quantize_weight_as(weight, out_features, in_features, WeightScheme::new())
}

/// [`quantize_weight`] by a scheme of your choice.
///
/// # Errors
/// As [`quantize_weight`].
pub fn quantize_weight_as<T: Element>(
    weight: &[T],
    out_features: usize,
    in_features: usize,
    scheme: WeightScheme,
) -> Result<QuantizedWeight> {
    let cpu = SupportedCpu::get()?;
    check_int8_shape("weight", weight.len(), out_features, in_features)?;
    // Of the whole weight, also where each channel has its own: an index in an error is the whole weight's.
    let whole = range(weight, "weight", cpu)?;
    let (qmin, qmax) = scheme.range();
    let per_channel = scheme.granularity() == WeightGranularity::PerChannel;
    let (mut scales, mut zero_points, mut data) = (Vec::new(), Vec::new(), scratch::zeroed(weight.len())?);
    let piece = if per_channel { in_features } else { weight.len() };
    for (from, to) in weight.chunks_exact(piece).zip(data.chunks_exact_mut(piece)) {
        let (min, max) = if per_channel { range(from, "weight", cpu)? } else { whole };
        let mut params = quantize::choose(min, max, qmin, qmax)?;
        if scheme.is_symmetric() {
            let steps = (qmax - qmin) as f32 / 2.0;
            (params.scale, params.zero_point) = ((min.abs().max(max.abs()) / steps).max(f32::EPSILON), 0);
        }
        in_pieces(from, to, |from, to| quantize::to_i8(from, to, params, cpu))?;
        if scheme.is_range_reduced() {
            // FBGEMM clamps to 8 bits, whatever the range that the parameters are for.
            to.iter_mut().for_each(|q| *q = (*q).clamp(qmin as i8, qmax as i8));
        }
        scales.push(params.scale);
        zero_points.push(params.zero_point);
    }
    let parameters = Parameters::of(&data, scales, zero_points, per_channel, out_features, in_features)?;
    Ok(QuantizedWeight { data, parameters })
}

/// Tells weights apart within this process: it is never stored, so the standard library may change how it hashes.
pub(crate) fn fingerprint(data: &[i8], out_features: usize, in_features: usize) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write_usize(out_features);
    hasher.write_usize(in_features);
    std::hash::Hash::hash_slice(data, &mut hasher);
    hasher.finish()
}
