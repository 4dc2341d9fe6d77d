//! Float in, float out, weights in fp16: PyTorch's `fbgemm_linear_fp16_weight`.

use super::lengths::{check_lengths, new_output, rows};
use super::packed::PackedMatrixFp16;
use crate::cpu::SupportedCpu;
use crate::error::Result;

/// `input · weightᵀ + bias` with fp16 weights through FBGEMM's fp16 GEMM, bit-identical to PyTorch's
/// `fbgemm_linear_fp16_weight`.
///
/// `input` is float, row-major, any number of rows of `in_features`; the result has as many rows of `out_features`.
/// `bias` has `out_features` elements, or is `None` for a layer without. No rows give an empty result.
///
/// Weights widen to float exactly, and products are added in float by fused multiply-adds, in order of `in_features`;
/// then the bias is added, rounded by itself. With 512-bit registers
/// ([`Isa::Avx512`](crate::Isa::Avx512), [`Isa::Avx512Vnni`](crate::Isa::Avx512Vnni)) a row's result doesn't depend on the rows it comes with. With 256-bit ones
/// the last one or two rows of some batches are added up in two or four partial sums, so that a row's result can differ
/// in its last bits from the same row's in another batch, as in PyTorch. From 513 `in_features` on, the outputs of the
/// last block of 16 or 32, where it is not full, get one sum per 512 inputs: kinds of CPU can differ there, too.
///
/// NaN and infinity in `input` and `bias` go through to the outputs by the rules of float arithmetic; where several
/// NaNs meet, which one's bits come out is not promised.
///
/// ```
/// let packed = fbgemm::pack_matrix_fp16(&[0.5, -1.0, 0.25, 1.5, 0.1, -0.5], 2, 3)?;
/// let y = fbgemm::linear_fp16_weight(&[1.0, 2.0, 3.0], &packed, Some(&[0.25, 0.0]))?;
/// let tenth = 0.0999755859375; // 0.1 in fp16
/// assert_eq!(y, [1.0 * 0.5 - 2.0 * 1.0 + 3.0 * 0.25 + 0.25, 1.0 * 1.5 + 2.0 * tenth - 3.0 * 0.5]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::PartialRow`](crate::Error::PartialRow) or [`Error::WrongLength`](crate::Error::WrongLength) for lengths that don't fit the weight; [`Error::TooLarge`](crate::Error::TooLarge) from
/// 2³¹ elements of input or output; [`Error::InstructionSetChanged`](crate::Error::InstructionSetChanged); and those of [`cpu_support`](crate::cpu_support).
pub fn linear_fp16_weight(input: &[f32], packed: &PackedMatrixFp16, bias: Option<&[f32]>) -> Result<Vec<f32>> {
    let mut output = new_output(input, packed.out_features(), packed.in_features())?;
    linear_fp16_weight_into(input, packed, bias, &mut output)?;
    Ok(output)
}

/// [`linear_fp16_weight`] into the caller's buffer, which has rows × `out_features` elements. This allocates nothing
/// but, on a thread's first call, FBGEMM's own buffer of 1 MiB, which the thread keeps to its end.
///
/// ```
/// let packed = fbgemm::pack_matrix_fp16(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let mut output = [0.0; 4];
/// fbgemm::linear_fp16_weight_into(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], &packed, None, &mut output)?;
/// assert_eq!(output, [-0.75, 0.0, -0.25, -2.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_fp16_weight`], and [`Error::WrongLength`](crate::Error::WrongLength) for the output. On an error the output is as it was, unless
/// FBGEMM itself failed ([`Error::Fbgemm`](crate::Error::Fbgemm)).
pub fn linear_fp16_weight_into(
    input: &[f32],
    packed: &PackedMatrixFp16,
    bias: Option<&[f32]>,
    output: &mut [f32],
) -> Result<()> {
    run(input, packed, bias, output, 1, |task| task(0))
}

/// [`linear_fp16_weight_into`] in `tasks` parts.
pub(crate) fn run(
    input: &[f32],
    packed: &PackedMatrixFp16,
    bias: Option<&[f32]>,
    output: &mut [f32],
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
) -> Result<()> {
    let cpu = SupportedCpu::get()?;
    let rows = rows(input.len(), packed.out_features(), packed.in_features())?;
    check_lengths(bias, output, rows, packed.out_features())?;
    packed.ffi().linear(input, output, tasks, execute, cpu)?;
    if let Some(bias) = bias {
        for row in output.chunks_exact_mut(packed.out_features()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    Ok(())
}
