//! Float in, float out, int8 in between: PyTorch's `fbgemm_linear_int8_weight` and `quantized::linear_dynamic`.

use super::lengths::{check_lengths, new_output, rows};
use super::packed::PackedMatrix;
use super::per_row;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::int8::OutputStage;
use crate::ffi::{Params, scratch, tasks};
use crate::quant::input::{InputGranularity, InputScheme};
use crate::quant::range::finite_range;
use crate::quant::weight::{Parameters, QuantizedWeight};

/// `input · weightᵀ + bias` through FBGEMM's int8 GEMM, bit-identical to PyTorch's `fbgemm_linear_int8_weight`.
///
/// `input` is row-major, any number of rows of `in_features`; the result has as many rows of `out_features`. `bias`
/// has `out_features` elements, or is `None` for a layer without (PyTorch's operator demands one). No rows give an
/// empty result.
///
/// The input is quantized to unsigned 8 bits with one scale and zero point **for the whole call**, from its smallest
/// and largest element: a row's result depends on the rows it comes with, as in PyTorch. On CPUs without VNNI, sums of
/// two products are clamped to 16 bits ([`Isa::sums_pairs_exactly`](crate::Isa::sums_pairs_exactly)), as in PyTorch.
/// Then y = (Σ q_in·q_w, both less their zero points) · (scale_in · scale_w) + bias, the last two steps as one fused
/// multiply-add. NaN in `bias` goes through to the outputs.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let y = fbgemm::linear_int8_weight(&[1.0, 2.0, 3.0], &weight, &packed, Some(&[0.1, 0.2]))?;
/// let exact = [1.0 * 0.5 - 2.0 * 1.0 + 3.0 * 0.25 + 0.1, 1.0 * 1.5 - 3.0 * 0.5 + 0.2];
/// assert!((y[0] - exact[0]).abs() < 0.03 && (y[1] - exact[1]).abs() < 0.03);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::PartialRow`] or [`Error::WrongLength`] for lengths that don't fit the weight; [`Error::TooLarge`] from
/// 2³¹ elements of input or output; [`Error::NotFinite`] for NaN or infinity in the input;
/// [`Error::ForeignPackedMatrix`] where `packed` was made from another weight; [`Error::InstructionSetChanged`];
/// [`Error::AccumulatorOverflow`] and [`Error::ScaleOverflow`] where the result would be garbage; and those of
/// [`cpu_support`](crate::cpu_support).
pub fn linear_int8_weight(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
) -> Result<Vec<f32>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    linear_int8_weight_into(input, weight, packed, bias, &mut output)?;
    Ok(output)
}

/// [`linear_int8_weight`] into the caller's buffer, which has rows × `out_features` elements. After a thread's first
/// call of a size this allocates nothing.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let mut output = [0.0; 4];
/// fbgemm::linear_int8_weight_into(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], &weight, &packed, None, &mut output)?;
/// assert!((output[2] - (-0.25)).abs() < 0.03);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_int8_weight`], and [`Error::WrongLength`] for the output. On an error the output is as it was, unless
/// FBGEMM itself failed ([`Error::Fbgemm`]).
pub fn linear_int8_weight_into(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    output: &mut [f32],
) -> Result<()> {
    let operands = Operands { weight: weight.parameters(), packed, bias };
    operands.run(input, InputScheme::new(), false, output, 1, |task| task(0))
}

/// PyTorch's `quantized::linear_dynamic`, bit-identical: [`linear_int8_weight`] with ATen's way of choosing the input's
/// parameters, which differs from FBGEMM's, and a weight that may have a scale for each output
/// ([`QuantizedWeight::per_channel`]). `reduce_range` quantizes the input to seven bits, as
/// `torch.ao.nn.quantized.dynamic.Linear` does.
///
/// ```
/// let weight = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let packed = weight.pack()?;
/// let y = fbgemm::linear_dynamic(&[1.0, 2.0, 3.0], &weight, &packed, Some(&[0.1, 0.2]), true)?;
/// let exact = [1.0 * 0.5 - 2.0 * 1.0 + 3.0 * 0.25 + 0.1, 1.0 * 1.5 - 3.0 * 0.5 + 0.2];
/// assert!((y[0] - exact[0]).abs() < 0.05 && (y[1] - exact[1]).abs() < 0.05);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_int8_weight`].
pub fn linear_dynamic(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
) -> Result<Vec<f32>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    linear_dynamic_into(input, weight, packed, bias, reduce_range, &mut output)?;
    Ok(output)
}

/// [`linear_dynamic`] into the caller's buffer, as [`linear_int8_weight_into`].
///
/// # Errors
/// As [`linear_int8_weight_into`].
pub fn linear_dynamic_into(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
    output: &mut [f32],
) -> Result<()> {
    dynamic(input, weight, packed, bias, reduce_range, false, output)
}

/// PyTorch's `quantized::linear_relu_dynamic`, bit-identical: [`linear_dynamic`], and negative outputs become 0.
///
/// # Errors
/// As [`linear_int8_weight`].
pub fn linear_relu_dynamic(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
) -> Result<Vec<f32>> {
    let mut output = new_output(input, weight.out_features(), weight.in_features())?;
    linear_relu_dynamic_into(input, weight, packed, bias, reduce_range, &mut output)?;
    Ok(output)
}

/// [`linear_relu_dynamic`] into the caller's buffer, as [`linear_int8_weight_into`].
///
/// # Errors
/// As [`linear_int8_weight_into`].
pub fn linear_relu_dynamic_into(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
    output: &mut [f32],
) -> Result<()> {
    dynamic(input, weight, packed, bias, reduce_range, true, output)
}

fn dynamic(
    input: &[f32],
    weight: &QuantizedWeight,
    packed: &PackedMatrix,
    bias: Option<&[f32]>,
    reduce_range: bool,
    relu: bool,
    output: &mut [f32],
) -> Result<()> {
    let scheme = InputScheme::new().as_linear_dynamic();
    let scheme = if reduce_range { scheme.reduce_range() } else { scheme };
    let operands = Operands { weight: weight.parameters(), packed, bias };
    operands.run(input, scheme, relu, output, 1, |task| task(0))
}

/// What an operation multiplies with and adds.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) weight: &'a Parameters,
    pub(crate) packed: &'a PackedMatrix,
    pub(crate) bias: Option<&'a [f32]>,
}

impl<'a> Operands<'a> {
    /// All forms of the operation come down to this one.
    pub(crate) fn run(
        &self,
        input: &[f32],
        scheme: InputScheme,
        relu: bool,
        output: &mut [f32],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        let cpu = self.check(input, output)?;
        self.run_checked(input, None, scheme, relu, output, tasks, execute, cpu)
    }

    /// [`run`](Self::run) after [`check`](Self::check). `shared_range` is that of all the rows that share a scale with
    /// these, where they are more; it has been seen to be finite.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run_checked(
        &self,
        input: &[f32],
        shared_range: Option<(f32, f32)>,
        scheme: InputScheme,
        relu: bool,
        output: &mut [f32],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
        cpu: SupportedCpu,
    ) -> Result<()> {
        let (packed, stage) = (self.packed.ffi(), self.stage(relu));
        let depth = self.weight.in_features;
        let per_row = scheme.granularity() == InputGranularity::PerRow;
        let range = match shared_range {
            Some(range) if !per_row => range,
            _ => finite_range(input, "input", cpu)?,
        };
        if input.is_empty() {
            return Ok(());
        }
        let params = scheme.choose(range)?;
        // A single row is its own tensor.
        if per_row && input.len() > depth {
            self.check_rows(input, params, scheme, cpu)?;
            return tasks::by_rows(output, self.weight.out_features, 1, tasks, execute, |rows, output| {
                per_row::linear(&input[rows.start * depth..rows.end * depth], scheme, packed, &stage, output, cpu)
            });
        }
        self.check_params(params)?;
        packed.linear(input, params, &stage, output, tasks, execute, cpu)
    }

    /// Checks lengths, and that the packed matrix is of this weight; that it is for the kernels in use is checked where
    /// they are called.
    pub(crate) fn check<T>(&self, input: &[T], output: &[T]) -> Result<SupportedCpu> {
        let cpu = SupportedCpu::get()?;
        let (weight, packed) = (self.weight, self.packed);
        let rows = rows(input.len(), weight.out_features, weight.in_features)?;
        if packed.fingerprint() != weight.fingerprint {
            return Err(Error::ForeignPackedMatrix {
                packed_out: packed.out_features(),
                packed_in: packed.in_features(),
                weight_out: weight.out_features,
                weight_in: weight.in_features,
            });
        }
        check_lengths(self.bias, output, rows, weight.out_features)?;
        Ok(cpu)
    }

    /// Checks that the sums, and their product with the scales, will be no garbage, and gives the largest magnitude that
    /// a sum can have.
    pub(crate) fn check_params(&self, Params { scale, zero_point }: Params) -> Result<u64> {
        let bound = self.weight.check_sums(zero_point)?;
        let largest = self.weight.largest_scale;
        match (scale * largest).is_finite() {
            true => Ok(bound),
            false => Err(Error::ScaleOverflow { input: scale, weight: largest }),
        }
    }

    /// [`check_params`](Self::check_params) for each row of an input; `widest` are the parameters for all of its range.
    fn check_rows(&self, input: &[f32], widest: Params, scheme: InputScheme, cpu: SupportedCpu) -> Result<()> {
        if self.weight.check_sums(0).is_err() || self.check_params(widest).is_err() {
            // So large that it depends on the row; found now, so that nothing is left to refuse in the middle.
            for row in input.chunks_exact(self.weight.in_features) {
                self.check_params(scheme.choose(finite_range(row, "input", cpu)?)?)?;
            }
        }
        Ok(())
    }

    /// What turns sums into outputs.
    pub(crate) fn stage(&self, relu: bool) -> OutputStage<'a> {
        let Parameters { scales, zero_points, col_offsets, .. } = self.weight;
        OutputStage { scales, zero_points, col_offsets, bias: self.bias.unwrap_or_default(), relu }
    }

    /// [`run`](Self::run) in one task, timed.
    #[cfg(feature = "profile")]
    pub(crate) fn profile(&self, input: &[f32], scheme: InputScheme, output: &mut [f32]) -> Result<Profile> {
        use std::time::Instant;
        let start = Instant::now();
        let cpu = self.check(input, output)?;
        let checked = Instant::now();
        let range = finite_range(input, "input", cpu)?;
        let ranged = Instant::now();
        self.run_checked(input, Some(range), scheme, false, output, 1, |task| task(0), cpu)?;
        let done = Instant::now();
        self.packed.ffi().quantize_input(input, scheme.choose(range)?, cpu)?;
        let quantize = done.elapsed();
        Ok(Profile {
            range: ranged - checked,
            quantize,
            multiply: (done - ranged).saturating_sub(quantize),
            rest: checked - start,
        })
    }
}

/// Where the time of a call goes.
#[cfg(feature = "profile")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Finding the input's range and checking that it is finite.
    pub range: std::time::Duration,
    /// Quantizing and packing the input.
    pub quantize: std::time::Duration,
    /// Choosing parameters, multiplying, and turning the sums into floats.
    pub multiply: std::time::Duration,
    /// All else: the checks of lengths.
    pub rest: std::time::Duration,
}

/// Drops the calling thread's buffers. One grows to what the largest operation on the thread needed: the sums of the rows
/// that are computed at once (at most 8 MiB, or 128 bytes for each of `out_features` where that is more), at most 0.2 MB
/// for a part of the quantized input, and, per row, as much of the input as rows (at most 8 MiB, or 32 bytes for each of
/// `in_features`). The other holds rows of inputs and outputs that are not `f32` (at most 4 MiB, or one row, of fp16
/// weights 120 rows, where that is more). A third holds the gates of recurrent layers (some 2 MiB, or one step's where
/// that is more), and for several layers in both directions a copy of one layer's output. The next operation makes them
/// anew.
pub fn release_thread_buffer() {
    scratch::release();
}

/// The size of the calling thread's buffers in bytes.
pub fn thread_buffer_bytes() -> usize {
    scratch::bytes()
}
