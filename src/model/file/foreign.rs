//! Weights that other tools quantized: which of them are this crate's own in other words, and what the others are.
//!
//! - bitsandbytes: `x.weight` (I8) and `x.SCB` (one for each output): real = q · SCB / 127.
//! - compressed-tensors: `x.weight` (I8) and `x.weight_scale` (one, or one for each output), perhaps
//!   `x.weight_zero_point`: real = (q − zero point) · scale.
//! - float8: `x.weight` (F8_E4M3 or F8_E5M2) and a scale to multiply with: `x.weight_scale`, or `x.weight_scale_inv`, as
//!   DeepSeek's and transformers' FP8 layers call it; one, one for each output, or one for each block of 128 by 128.

use super::format::{floats, is_float, numbers};
use super::model_file::ModelFile;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::quant::weight::QuantizedWeight;
use safetensors::tensor::Dtype;

/// Parts of a layer that say that another tool quantized its weight.
const SCALES: [&str; 5] = ["SCB", "weight_scale", "weight_scale_inv", "scale_weight", "_scale_inv"];
/// Parts that belong to such a weight, and are of no use to this crate's layers.
const OTHER_PARTS: [&str; 3] = ["weight_format", "weight_zero_point", "weight_shape"];
/// The side of a block of a weight that shares a scale, where a scale is a matrix.
const BLOCK: usize = 128;

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
    let refuse = |reason: String| Err(Error::ForeignWeight { name: full.to_string(), reason });
    let beside: Vec<String> =
        SCALES.iter().map(|part| format!("{prefix}{part}")).filter(|name| file.tensor(name).is_ok()).collect();
    let kind = match tensor.dtype() {
        dtype if is_float(dtype) && beside.is_empty() => return Ok(Weight::Plain),
        dtype if is_float(dtype) => {
            let scale = &beside[0];
            return refuse(format!("it is {dtype} with {scale:?} beside it, which may or may not be multiplied in"));
        }
        Dtype::I8 => Kind::Int8 { divisor: 1.0 },
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => Kind::Float8,
        other => return refuse(format!("it is {other}")),
    };
    let [scale] = &beside[..] else {
        let scales = SCALES.map(|part| format!("{prefix}{part}")).join(", ");
        return refuse(match beside.len() {
            0 => format!("it is {} and none of its possible scales is there: {scales}", tensor.dtype()),
            _ => format!("it has several scales: {}", beside.join(", ")),
        });
    };
    let kind = match kind {
        Kind::Int8 { .. } if scale.ends_with("SCB") => Kind::Int8 { divisor: 127.0 },
        kind => kind,
    };
    if let Ok(format) = file.tensor(&format!("{prefix}weight_format"))
        && format.data()?.iter().any(|&byte| byte != 0)
    {
        return refuse("bitsandbytes stored it in the order of a GPU's kernels, not by rows".to_string());
    }
    let zero_point = Some(format!("{prefix}weight_zero_point")).filter(|name| file.tensor(name).is_ok());
    let mut parts: Vec<String> =
        OTHER_PARTS.iter().map(|part| format!("{prefix}{part}")).filter(|name| file.tensor(name).is_ok()).collect();
    parts.push(scale.clone());
    let foreign = Foreign { kind, scale: scale.clone(), zero_point, parts };
    if let Err(reason) = foreign.check(file, &tensor) {
        return refuse(reason);
    }
    Ok(Weight::Foreign(foreign))
}

impl Foreign {
    /// What is wrong with the scale or the zero point, by their headers.
    fn check(&self, file: &ModelFile, weight: &Tensor) -> std::result::Result<(), String> {
        let [n, k] = weight.shape() else { return Err("it has not 2 dimensions".to_string()) };
        let scale = file.tensor(&self.scale).map_err(|e| e.to_string())?;
        let shape = scale.shape();
        let elements: usize = shape.iter().product();
        let blocks = shape == [n.div_ceil(BLOCK), k.div_ceil(BLOCK)];
        let one_each = elements == *n && shape.iter().filter(|&&size| size != 1).count() <= 1;
        if !(is_float(scale.dtype()) && (elements == 1 || one_each || blocks && self.kind == Kind::Float8)) {
            let (name, dtype) = (&self.scale, scale.dtype());
            return Err(format!(
                "its scale {name:?} is {dtype} {shape:?}, expected floats, one or one for each of {n} rows"
            ));
        }
        let Some(name) = &self.zero_point else { return Ok(()) };
        let zero_point = file.tensor(name).map_err(|e| e.to_string())?;
        let same = zero_point.shape().iter().product::<usize>() == elements;
        if self.kind == Kind::Float8 || !same || !matches!(zero_point.dtype(), Dtype::I8 | Dtype::I32 | Dtype::I64) {
            let (dtype, shape) = (zero_point.dtype(), zero_point.shape());
            return Err(format!("its zero point {name:?} is {dtype} {shape:?}, expected integers, as many as scales"));
        }
        Ok(())
    }

    /// The weight as this crate's own, exactly but for the rounding of SCB / 127 to `f32`; `None` for one that is not int8.
    ///
    /// # Errors
    /// Those of reading, and of [`QuantizedWeight::per_channel`].
    pub(crate) fn int8(&self, file: &ModelFile, full: &str) -> Result<Option<QuantizedWeight>> {
        let Kind::Int8 { divisor } = self.kind else { return Ok(None) };
        let tensor = file.tensor(full)?;
        let (n, k) = (tensor.shape()[0], tensor.shape()[1]);
        let scales: Vec<f32> = self.scales(file)?.iter().map(|scale| scale / divisor).collect();
        let zero_points = match &self.zero_point {
            None => vec![0; scales.len()],
            Some(name) => {
                let zero_points = file.tensor(name)?;
                let bytes = zero_points.data()?;
                match zero_points.dtype() {
                    Dtype::I8 => numbers(&bytes, |b| i32::from(i8::from_le_bytes(b))),
                    Dtype::I32 => numbers(&bytes, i32::from_le_bytes),
                    _ => numbers(&bytes, |b| i32::try_from(i64::from_le_bytes(b)).unwrap_or(i32::MAX)),
                }
            }
        };
        let data = numbers(&tensor.data()?, i8::from_le_bytes);
        match (&scales[..], &zero_points[..]) {
            ([scale], [zero_point]) => QuantizedWeight::per_tensor(data, *scale, *zero_point, n, k),
            _ => QuantizedWeight::per_channel(data, scales, zero_points, n, k),
        }
        .map(Some)
    }

    /// A float8 weight's values: each times its scale, in `f32`.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn floats(&self, file: &ModelFile, full: &str) -> Result<Vec<f32>> {
        let tensor = file.tensor(full)?;
        let (n, k) = (tensor.shape()[0], tensor.shape()[1]);
        let scales = self.scales(file)?;
        let of: &dyn Fn(usize, usize) -> usize = match scales.len() {
            1 => &|_, _| 0,
            len if len == n && file.tensor(&self.scale)?.shape() != [n.div_ceil(BLOCK), k.div_ceil(BLOCK)] => {
                &|row, _| row
            }
            _ => &|row, column| row / BLOCK * k.div_ceil(BLOCK) + column / BLOCK,
        };
        let decode = if tensor.dtype() == Dtype::F8_E5M2 { f8_e5m2 } else { f8_e4m3 };
        let values = tensor.data()?.iter().map(|&byte| decode(byte)).collect::<Vec<f32>>();
        let scaled = values.iter().enumerate().map(|(i, value)| value * scales[of(i / k, i % k)]);
        Ok(scaled.collect())
    }

    fn scales(&self, file: &ModelFile) -> Result<Vec<f32>> {
        floats(&self.scale, &file.tensor(&self.scale)?)
    }

    /// How many scales it has.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub(crate) fn channels(&self, file: &ModelFile) -> Result<usize> {
        Ok(file.tensor(&self.scale)?.shape().iter().product())
    }

    /// Whether it is in 8-bit integers, and so needs no quantizing.
    pub(crate) fn is_int8(&self) -> bool {
        matches!(self.kind, Kind::Int8 { .. })
    }
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
