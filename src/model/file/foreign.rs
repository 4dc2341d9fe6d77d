//! Weights that other tools quantized: which of them are this crate's own in other words, and what the others are.
//!
//! - bitsandbytes: `x.weight` (I8) and `x.SCB` (one for each output): real = q · SCB / 127.
//! - compressed-tensors: `x.weight` (I8) and `x.weight_scale` (one, or one for each output), perhaps
//!   `x.weight_zero_point`: real = (q − zero point) · scale.
//! - float8: `x.weight` (F8_E4M3 or F8_E5M2) and a scale to multiply with: `x.weight_scale`, or `x.weight_scale_inv`,
//!   as DeepSeek's and transformers' FP8 layers call it; one, one for each output, or one for each block of 128 by 128.

use super::format::{floats, is_float, numbers};
use super::model_file::ModelFile;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::model::names::layer_of;
use crate::quant::weight::QuantizedWeight;
use safetensors::tensor::Dtype;

/// Parts of a layer that say that another tool quantized its weight.
const SCALES: [&str; 5] = ["SCB", "weight_scale", "weight_scale_inv", "scale_weight", "_scale_inv"];
/// Parts that belong to such a weight, and are of no use to this crate's layers.
const OTHER_PARTS: [&str; 3] = ["weight_format", "weight_zero_point", "weight_shape"];
/// What weights are called that hold several elements in each number: GPTQ's and AWQ's, and compressed-tensors'.
const PACKED: [&str; 2] = ["qweight", "weight_packed"];
/// Parts of bitsandbytes' weights in 4 bits, which are packed, too, and called as others are.
const PACKED_BESIDE: [&str; 2] = ["weight.absmax", "weight.quant_map"];
/// The side of a block of a weight that shares a scale, where a scale is a matrix.
const BLOCK: usize = 128;

/// Which part of its layer a weight is that another tool packed: several elements in a number, which nothing here
/// reads.
pub(crate) fn packed_part(file: &ModelFile, full: &str, dtype: Dtype) -> Option<&'static str> {
    if is_float(dtype) || is_known(dtype) {
        return None;
    }
    let is = |part: &&&str| layer_of(full, part).is_some();
    let beside =
        |prefix: &str| SCALES.iter().chain(&PACKED_BESIDE).any(|part| file.tensor(&format!("{prefix}{part}")).is_ok());
    match full.strip_suffix("weight").filter(|_| is(&&"weight")) {
        Some(prefix) if dtype.bitsize() < 8 || beside(prefix) => Some("weight"),
        _ => PACKED.iter().find(is).copied(),
    }
}

/// Whether weights of this type can be read, given their scales.
pub(crate) fn is_known(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::I8 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// How a weight was quantized by another tool, and by which tensors.
pub(crate) struct Foreign {
    kind: Kind,
    scale: String,
    zero_point: Option<String>,
    /// Full names of all tensors beside the weight that its import uses up.
    pub(crate) parts: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// 8-bit integers; the scale is divided by so much.
    Int8 {
        divisor: f32,
    },
    Float8,
}

/// What a weight is.
pub(crate) enum Weight {
    /// Floats, as they are.
    Plain,
    /// Another tool's, that can be read.
    Foreign(Foreign),
}

/// What kind of weight a tensor is. `prefix` is what the names of its layer's other parts begin with: `x.`, or nothing.
///
/// # Errors
/// [`Error::ForeignWeight`] for one that another tool quantized, in a way that is not known.
pub(crate) fn weight(file: &ModelFile, full: &str, prefix: &str) -> Result<Weight> {
    let tensor = file.tensor(full)?;
    let there = |part: &&str| Some(format!("{prefix}{part}")).filter(|name| file.tensor(name).is_ok());
    let scales: Vec<String> = SCALES.iter().filter_map(there).collect();
    if is_float(tensor.dtype()) && scales.is_empty() {
        return Ok(Weight::Plain);
    }
    let read = || {
        let (kind, scale) = kind(&tensor, prefix, &scales)?;
        if let Some(format) = there(&"weight_format")
            && file.tensor(&format).and_then(|format| Ok(format.data()?.iter().any(|&byte| byte != 0))) != Ok(false)
        {
            return Err("bitsandbytes stored it in the order of a GPU's kernels, not by rows".to_string());
        }
        let mut parts: Vec<String> = OTHER_PARTS.iter().filter_map(there).collect();
        parts.push(scale.clone());
        let foreign = Foreign { kind, scale, zero_point: there(&"weight_zero_point"), parts };
        foreign.check(file, &tensor)?;
        Ok(foreign)
    };
    read().map(Weight::Foreign).map_err(|reason| Error::ForeignWeight { name: full.to_string(), reason })
}

/// How a weight was quantized, and the one scale that it has; or why that can't be told.
fn kind(tensor: &Tensor, prefix: &str, scales: &[String]) -> std::result::Result<(Kind, String), String> {
    let dtype = tensor.dtype();
    match scales {
        [scale, ..] if is_float(dtype) => {
            Err(format!("it is {dtype} with {scale:?} beside it, which may or may not be multiplied in"))
        }
        _ if !is_known(dtype) => Err(format!("it is {dtype} {:?}", tensor.shape())),
        [] => {
            let scales = SCALES.map(|part| format!("{prefix}{part}")).join(", ");
            Err(format!("it is {dtype} and none of its possible scales is there: {scales}"))
        }
        [scale] if dtype != Dtype::I8 => Ok((Kind::Float8, scale.clone())),
        [scale] => {
            let divisor = if scale.ends_with("SCB") { 127.0 } else { 1.0 };
            Ok((Kind::Int8 { divisor }, scale.clone()))
        }
        several => Err(format!("it has several scales: {}", several.join(", "))),
    }
}

impl Foreign {
    /// What is wrong with the scale or the zero point, by their headers.
    fn check(&self, file: &ModelFile, weight: &Tensor) -> std::result::Result<(), String> {
        let [n, k] = weight.shape()[..] else { return Err("it has not 2 dimensions".to_string()) };
        let scale = file.tensor(&self.scale).map_err(|e| e.to_string())?;
        // Not [1, n], which is one for each column.
        let one_or_each = |shape: &[usize]| matches!(shape, [] | [1] | [1, 1]) || shape == [n] || shape == [n, 1];
        let blocks = self.kind == Kind::Float8 && scale.shape() == blocks(n, k);
        if !(is_float(scale.dtype()) && (one_or_each(scale.shape()) || blocks)) {
            let (name, dtype, shape) = (&self.scale, scale.dtype(), scale.shape());
            return Err(format!(
                "its scale {name:?} is {dtype} {shape:?}, expected floats, one or one for each of {n} rows"
            ));
        }
        let Some(name) = &self.zero_point else { return Ok(()) };
        let zero_point = file.tensor(name).map_err(|e| e.to_string())?;
        let integers = matches!(zero_point.dtype(), Dtype::I8 | Dtype::I32 | Dtype::I64);
        let same = one_or_each(zero_point.shape()) && elements(&zero_point) == elements(&scale);
        if self.kind == Kind::Float8 || !same || !integers {
            let (dtype, shape) = (zero_point.dtype(), zero_point.shape());
            return Err(format!("its zero point {name:?} is {dtype} {shape:?}, expected integers, as many as scales"));
        }
        Ok(())
    }

    /// The weight as this crate's own, exactly but for the rounding of SCB / 127 to `f32`; `None` for one that is not
    /// int8.
    ///
    /// # Errors
    /// Those of reading, and of [`QuantizedWeight::per_channel`].
    pub(crate) fn int8(&self, file: &ModelFile, full: &str) -> Result<Option<QuantizedWeight>> {
        let Kind::Int8 { .. } = self.kind else { return Ok(None) };
        let tensor = file.tensor(full)?;
        let (n, k) = (tensor.shape()[0], tensor.shape()[1]);
        let (mut scales, zero_points) = (self.scales(file)?, self.zero_points(file)?);
        let data = numbers(&tensor.data()?, i8::from_le_bytes)?;
        let channels = scales.len();
        // Zeros have no largest weight to scale by: whatever their scale, they are 0.
        for ((scale, zero_point), of_it) in scales.iter_mut().zip(&zero_points).zip(data.chunks(n * k / channels)) {
            if *scale == 0.0 && of_it.iter().all(|&q| i32::from(q) == *zero_point) {
                *scale = 1.0;
            }
        }
        match channels {
            1 => QuantizedWeight::per_tensor(data, scales[0], zero_points[0], n, k),
            _ => QuantizedWeight::per_channel(data, scales, zero_points, n, k),
        }
        .map(Some)
    }

    /// The weight's values: each less its zero point, times its scale, in `f32`.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn floats(&self, file: &ModelFile, full: &str) -> Result<Vec<f32>> {
        let tensor = file.tensor(full)?;
        let (n, k) = (tensor.shape()[0], tensor.shape()[1]);
        let (scales, zero_points) = (self.scales(file)?, self.zero_points(file)?);
        let by_row = scales.len() == n && file.tensor(&self.scale)?.shape() != blocks(n, k);
        let of = |row: usize, column: usize| match scales.len() {
            1 => 0,
            _ if by_row => row,
            _ => row / BLOCK * k.div_ceil(BLOCK) + column / BLOCK,
        };
        let decode = match tensor.dtype() {
            Dtype::F8_E5M2 => f8_e5m2,
            Dtype::F8_E4M3 => f8_e4m3,
            _ => |byte: u8| f32::from(byte as i8),
        };
        let value = |(i, &byte): (usize, &u8)| {
            let of = of(i / k, i % k);
            // Both exact, as is their difference.
            (decode(byte) - zero_points.get(of).map_or(0.0, |&zero_point| zero_point as f32)) * scales[of]
        };
        let bytes = tensor.data()?;
        let mut values = zeroed(bytes.len())?;
        values.iter_mut().zip(bytes.iter().enumerate()).for_each(|(to, from)| *to = value(from));
        Ok(values)
    }

    fn scales(&self, file: &ModelFile) -> Result<Vec<f32>> {
        let mut scales = floats(&self.scale, &file.tensor(&self.scale)?)?;
        if let Kind::Int8 { divisor } = self.kind {
            scales.iter_mut().for_each(|scale| *scale /= divisor);
        }
        Ok(scales)
    }

    /// As many as scales; none of float8.
    fn zero_points(&self, file: &ModelFile) -> Result<Vec<i32>> {
        match (&self.zero_point, self.kind) {
            (_, Kind::Float8) => Ok(Vec::new()),
            (None, _) => zeroed(self.channels(file)?),
            (Some(name), _) => {
                let tensor = file.tensor(name)?;
                let bytes = tensor.data()?;
                match tensor.dtype() {
                    Dtype::I8 => numbers(&bytes, |b| i32::from(i8::from_le_bytes(b))),
                    Dtype::I32 => numbers(&bytes, i32::from_le_bytes),
                    // One beyond 32 bits is as wrong as the largest.
                    _ => numbers(&bytes, |b| i32::try_from(i64::from_le_bytes(b)).unwrap_or(i32::MAX)),
                }
            }
        }
    }

    /// How many scales it has.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub(crate) fn channels(&self, file: &ModelFile) -> Result<usize> {
        Ok(elements(&file.tensor(&self.scale)?))
    }

    /// Whether it is in 8-bit integers.
    pub(crate) fn is_int8(&self) -> bool {
        matches!(self.kind, Kind::Int8 { .. })
    }
}

fn elements(tensor: &Tensor) -> usize {
    tensor.shape().iter().product()
}

/// The shape of the scales of a matrix, one for each block.
fn blocks(rows: usize, columns: usize) -> [usize; 2] {
    [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)]
}

/// Four bits of exponent (bias 7), three of fraction, no infinity: the `e4m3fn` of ML frameworks.
fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 8.0 * 2f32.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte >> 7 == 1 { -magnitude } else { magnitude }
}

/// Five bits of exponent, two of fraction: the upper half of fp16.
fn f8_e5m2(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the standard's tables (OCP 8-bit floating point, and torch.float8_e4m3fn).
    #[test]
    fn float8_has_the_standards_values() {
        let e4m3 = [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x07, 0.875 * 2f32.powi(-6)), (0x08, 2f32.powi(-6))];
        let more = [(0x38, 1.0), (0x3c, 1.5), (0x7e, 448.0), (0xfe, -448.0), (0xb8, -1.0)];
        for (byte, value) in e4m3.into_iter().chain(more) {
            assert_eq!(f8_e4m3(byte), value, "{byte:#x}");
        }
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
        for (byte, value) in [(0x3c, 1.0), (0x7b, 57344.0), (0x01, 2f32.powi(-16)), (0xbe, -1.5), (0x7c, f32::INFINITY)]
        {
            assert_eq!(f8_e5m2(byte), value, "{byte:#x}");
        }
    }
}
