//! FBGEMM's quantizing: the choice of scale and zero point, and numbers to 8 bits.

use super::Params;
use super::types::{TensorQuantizationParams, failed};
use crate::cpu::SupportedCpu;
use crate::error::Result;

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: `choose_quantization_params` takes any numbers; the others, which rely on more, are unsafe.
    unsafe extern "C++" {
        include!("fbgemm/include/quantize.h");

        #[namespace = "fbgemm"]
        type TensorQuantizationParams = super::TensorQuantizationParams;

        fn choose_quantization_params(min: f32, max: f32, qmin: i32, qmax: i32) -> Result<TensorQuantizationParams>;
        /// Unsafe: `to` must be as long as `from`, and the CPU must have AVX2.
        unsafe fn quantize_int8(from: &[f32], to: &mut [i8], scale: f32, zero_point: i32) -> Result<()>;
        /// Unsafe: as `quantize_int8`.
        unsafe fn quantize_uint8(from: &[f32], to: &mut [u8], scale: f32, zero_point: i32) -> Result<()>;
    }
}

/// FBGEMM's own choice of scale and zero point for values in `min..=max`, onto `qmin..=qmax`.
pub(crate) fn choose(min: f32, max: f32, qmin: i32, qmax: i32) -> Result<Params> {
    let chosen =
        bridge::choose_quantization_params(min, max, qmin, qmax).map_err(failed("ChooseQuantizationParams"))?;
    Ok(Params { scale: chosen.scale, zero_point: chosen.zero_point })
}

/// # Panics
/// If the lengths differ.
pub(crate) fn to_i8(from: &[f32], to: &mut [i8], Params { scale, zero_point }: Params, _: SupportedCpu) -> Result<()> {
    assert_eq!(from.len(), to.len());
    // SAFETY: the lengths are equal, checked just above; a `SupportedCpu` is proof of AVX2.
    unsafe { bridge::quantize_int8(from, to, scale, zero_point) }.map_err(failed("Quantize"))
}

/// # Panics
/// If the lengths differ.
pub(crate) fn to_u8(from: &[f32], to: &mut [u8], Params { scale, zero_point }: Params, _: SupportedCpu) -> Result<()> {
    assert_eq!(from.len(), to.len());
    // SAFETY: the lengths are equal, checked just above; a `SupportedCpu` is proof of AVX2.
    unsafe { bridge::quantize_uint8(from, to, scale, zero_point) }.map_err(failed("Quantize"))
}
