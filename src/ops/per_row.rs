//! The int8 operation with a scale and a zero point for each row of the input: FBGEMM gives the sums, and the arithmetic
//! of its output stage, which takes one scale for all rows, is done here.

use crate::cpu::SupportedCpu;
use crate::error::Result;
use crate::ffi::int8::{OutputStage, PackedInt8};
use crate::ffi::scratch::{as_bytes, with_operation_buffers};
use crate::ffi::{Params, quantize};
use crate::quant::input::InputScheme;
use crate::quant::range::finite_range;

/// `output` = dequantize(quantize(`input`) · weightᵀ) + bias, each row of the input with its own parameters by `scheme`.
///
/// # Errors
/// Those of the scheme's choice, and [`PackedInt8::multiply`]'s.
///
/// # Panics
/// If a length does not fit the packed matrix.
pub(crate) fn linear(
    input: &[f32],
    scheme: InputScheme,
    packed: &PackedInt8,
    stage: &OutputStage,
    output: &mut [f32],
    cpu: SupportedCpu,
) -> Result<()> {
    let (width, depth) = (packed.out_features(), packed.in_features());
    let (rows, pack) = (input.len() / depth, packed.pack_len());
    // As many as fit with their sums, and as many as fit with their bytes.
    let at_once = rows.min(packed.rows_at_once(width)).min(packed.rows_at_once(depth.div_ceil(4))).max(1);
    let bytes = (at_once * depth).div_ceil(size_of::<i32>());
    with_operation_buffers([pack, at_once * width, at_once * 2, bytes], |[pack_buffer, sums, chosen, bytes]| {
        let bytes = as_bytes(bytes);
        for (input, output) in input.chunks(at_once * depth).zip(output.chunks_mut(at_once * width)) {
            let quantized = &mut bytes[..input.len()];
            let sums = &mut sums[..output.len()];
            let each = input.chunks_exact(depth).zip(quantized.chunks_exact_mut(depth)).zip(chosen.chunks_exact_mut(2));
            for ((from, to), chosen) in each {
                let params = scheme.choose(finite_range(from, "input", cpu)?)?;
                quantize::to_u8(from, to, params, cpu)?;
                chosen.copy_from_slice(&[params.scale.to_bits() as i32, params.zero_point]);
            }
            packed.multiply(quantized, sums, pack_buffer, cpu)?;
            let done = sums.chunks_exact(width).zip(quantized.chunks_exact(depth)).zip(chosen.chunks_exact(2));
            for (((sums, bytes), chosen), output) in done.zip(output.chunks_exact_mut(width)) {
                let params = Params { scale: f32::from_bits(chosen[0] as u32), zero_point: chosen[1] };
                cpu.with_avx2(|| finish_row(sums, row_sum(bytes), params, stage, output));
            }
        }
        Ok(())
    })
}

/// What a row's bytes add up to, wrapping around.
#[inline(always)]
pub(super) fn row_sum(bytes: &[u8]) -> i32 {
    let mut sum = 0i32;
    for &q in bytes {
        sum = sum.wrapping_add(i32::from(q));
    }
    sum
}

/// FBGEMM's `ReQuantizeForFloat` for one row, whose bytes add up to `row_offset`: y = (sum − zero points' parts) ·
/// (scale · scale) + bias, the last two steps as one fused multiply-add. Integers wrap around as FBGEMM's do;
/// `Parameters::check_sums` has seen that the result of them all fits.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // the compiler makes vectors of them
pub(super) fn finish_row(sums: &[i32], row_offset: i32, params: Params, stage: &OutputStage, output: &mut [f32]) {
    let Params { scale, zero_point } = params;
    let n = output.len();
    let (sums, col_offsets, bias) = (&sums[..n], &stage.col_offsets[..n], stage.bias);
    // Loops, not iterators' methods: those are functions that the compiler may not inline, and then compiles without AVX2.
    let exact = |i: usize, of_weight: i32| {
        (sums[i].wrapping_sub(zero_point.wrapping_mul(col_offsets[i]))).wrapping_sub(row_offset.wrapping_mul(of_weight))
            as f32
    };
    if let ([of_weight], [its_zero_point]) = (stage.scales, stage.zero_points) {
        let multiplier = scale * of_weight;
        if bias.is_empty() {
            for i in 0..n {
                output[i] = exact(i, *its_zero_point) * multiplier;
            }
        } else {
            let bias = &bias[..n];
            for i in 0..n {
                output[i] = exact(i, *its_zero_point).mul_add(multiplier, bias[i]);
            }
        }
    } else {
        let (scales, zero_points) = (&stage.scales[..n], &stage.zero_points[..n]);
        if bias.is_empty() {
            for i in 0..n {
                output[i] = exact(i, zero_points[i]) * (scale * scales[i]);
            }
        } else {
            let bias = &bias[..n];
            for i in 0..n {
                output[i] = exact(i, zero_points[i]).mul_add(scale * scales[i], bias[i]);
            }
        }
    }
    if stage.relu {
        for y in output.iter_mut() {
            *y = if *y < 0.0 { 0.0 } else { *y };
        }
    }
}
