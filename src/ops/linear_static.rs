//! Unsigned 8 bits in and out, with parameters known beforehand: PyTorch's static `quantized::linear`.

use super::lengths::new_output;
use super::linear_int8::Operands;
use super::packed::PackedMatrix;
use crate::error::{Error, Result};
use crate::ffi::Params;
use crate::quant::input::U8Params;
use crate::quant::range::finite_range;
use crate::quant::weight::{Parameters, QuantizedWeight};

/// PyTorch's `quantized::linear`, bit-identical: unsigned 8 bits in and out, of parameters that a calibration has found.
///
/// `input` is row-major, any number of rows of `in_features`; the result has as many rows of `out_features`. `bias` is
/// float, `out_features` elements or none. The weight may have a scale for each output
/// ([`QuantizedWeight::per_channel`]). No rows give an empty result.
///
/// With x = Σ (q_in − zero_in)·(q_w − zero_w), exact but for the 16 bits of sums of two products on CPUs without VNNI
/// ([`Isa::sums_pairs_exactly`](crate::Isa::sums_pairs_exactly)), and s = scale_in · scale_w:
///
/// q_out = clamp(round((x + bias / s) · (s / scale_out)) + zero_out, 0, 255), ties to even, each step in `f32`. Where the
/// weight has one scale for all outputs, the sum with the bias is one fused multiply-add, of the bias and 1 / s. This is
/// FBGEMM's `ReQuantizeOutput` as ATen's `PackedLinearWeight::apply` calls it.
///
/// ```
/// use fbgemm::U8Params;
///
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let (of_input, of_output) = (U8Params::new(0.1, 100)?, U8Params::new(0.02, 128)?);
/// let q = fbgemm::linear_static(&[110, 120, 130], of_input, &weight, &packed, Some(&[0.1, 0.2]), of_output)?;
/// // 1.0, 2.0 and 3.0 in; −0.65 and 0.2 out.
/// assert_eq!(q, [96, 138]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::PartialRow`] or [`Error::WrongLength`] for lengths that don't fit the weight; [`Error::TooLarge`] from
/// 2³¹ elements of input or output; [`Error::ForeignPackedMatrix`] where `packed` was made from another weight;
/// [`Error::InstructionSetChanged`]; [`Error::NotFinite`] for NaN or infinity in the bias;
/// [`Error::AccumulatorOverflow`], [`Error::ScaleOverflow`] and [`Error::OutputOverflow`] where the result could be
/// garbage; and those of [`cpu_support`](crate::cpu_support).
pub fn linear_static(
    input: &[u8],
    input_params: U8Params,
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output_params: U8Params,
) -> Result<Vec<u8>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    linear_static_into(input, input_params, weight, packed, bias, output_params, &mut output)?;
    Ok(output)
}

/// [`linear_static`] into the caller's buffer, which has rows × `out_features` elements. After a thread's first call of a
/// size this allocates nothing.
///
/// # Errors
/// As [`linear_static`], and [`Error::WrongLength`] for the output. On an error the output is as it was, unless FBGEMM
/// itself failed ([`Error::Fbgemm`]).
pub fn linear_static_into(
    input: &[u8],
    input_params: U8Params,
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output_params: U8Params,
    output: &mut [u8],
) -> Result<()> {
    let operands = Operands { weight: weight.parameters(), packed, bias };
    Static { input: input_params, output: output_params }.run(&operands, input, output, false)
}

/// PyTorch's `quantized::linear_relu`, bit-identical: [`linear_static`], and no output is below its zero point.
///
/// ```
/// use fbgemm::U8Params;
///
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let (of_input, of_output) = (U8Params::new(0.1, 100)?, U8Params::new(0.02, 128)?);
/// let q = fbgemm::linear_relu_static(&[110, 120, 130], of_input, &weight, &packed, Some(&[0.1, 0.2]), of_output)?;
/// assert_eq!(q, [128, 138]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_static`].
pub fn linear_relu_static(
    input: &[u8],
    input_params: U8Params,
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output_params: U8Params,
) -> Result<Vec<u8>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    linear_relu_static_into(input, input_params, weight, packed, bias, output_params, &mut output)?;
    Ok(output)
}

/// [`linear_relu_static`] as [`linear_static_into`].
///
/// # Errors
/// As [`linear_static_into`].
pub fn linear_relu_static_into(
    input: &[u8],
    input_params: U8Params,
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output_params: U8Params,
    output: &mut [u8],
) -> Result<()> {
    let operands = Operands { weight: weight.parameters(), packed, bias };
    Static { input: input_params, output: output_params }.run(&operands, input, output, true)
}

/// What an operation's inputs and outputs stand for.
pub(crate) struct Static {
    pub(crate) input: U8Params,
    pub(crate) output: U8Params,
}

impl Static {
    /// For an output whose weight has this scale: the size of one step of its sums, and how many steps of the output
    /// that is.
    fn step(&self, weight_scale: f32) -> (f32, f32) {
        let of_sum = self.input.scale() * weight_scale;
        (of_sum, of_sum / self.output.scale())
    }

    pub(crate) fn run(&self, operands: &Operands, input: &[u8], output: &mut [u8], relu: bool) -> Result<()> {
        let cpu = operands.check(input, output)?;
        if input.is_empty() {
            return Ok(());
        }
        let (weight, zero_point) = (operands.weight, self.input.zero_point());
        let (low, high) = finite_range(operands.bias.unwrap_or_default(), "bias", cpu)?;
        let largest = operands.check_params(Params { scale: self.input.scale(), zero_point })?;
        self.check_outputs(weight, largest, operands.bias, low.abs().max(high.abs()))?;
        let (packed, stage, step) = (operands.packed.ffi(), operands.stage(relu), |scale| self.step(scale));
        let output_zero_point = self.output.zero_point();
        packed.linear_static(input, zero_point, &stage, weight.per_channel, step, output, output_zero_point, cpu)
    }

    /// Checks that no output is so many steps that FBGEMM's conversion to int32 wraps around to the other end. PyTorch
    /// doesn't ask.
    fn check_outputs(
        &self,
        weight: &Parameters,
        largest_sum: u64,
        bias: Option<&[f32]>,
        largest_bias: f32,
    ) -> Result<()> {
        /// Below 2³¹ by more than what the float steps round.
        const LIMIT: f64 = 2_147_480_000.0;
        // The bias as FBGEMM computes it: with scales so small that this is infinite or NaN, it gives garbage.
        let steps = |smallest: f32, largest: f32, bias: Option<f32>| {
            let ((of_sum, _), (_, multiplier)) = (self.step(smallest), self.step(largest));
            let of_bias =
                bias.map_or(0.0, |bias| if weight.per_channel { bias / of_sum } else { bias * (1.0 / of_sum) });
            (largest_sum as f64 + f64::from(of_bias.abs())) * f64::from(multiplier)
        };
        // Of all outputs at once, no less than of any: nearly always few enough.
        let smallest = weight.scales.iter().copied().fold(f32::INFINITY, f32::min);
        if steps(smallest, weight.largest_scale, bias.and(Some(largest_bias))) <= LIMIT {
            return Ok(());
        }
        let of_output = |output: usize| {
            let scale = weight.scales[if weight.per_channel { output } else { 0 }];
            steps(scale, scale, bias.map(|bias| bias[output]))
        };
        let mut all = (0..weight.out_features).map(|output| (output, of_output(output)));
        match all.find(|(_, steps)| steps.is_nan() || *steps > LIMIT) {
            None => Ok(()),
            Some((output, steps)) => Err(Error::OutputOverflow { output, steps }),
        }
    }
}
