//! How layers are laid out in a file: names, types, and the bytes of each kind of layer.

use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ffi::scratch::{Zeroable, zeroed};
use crate::model::names::part_name;
use crate::quant::input::InputScheme;
use crate::quant::weight::QuantizedWeight;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The newest layout that this version writes and reads.
pub(crate) const FORMAT: u32 = 4;
/// Before a layer's name: its input scheme's key in the metadata.
pub(crate) const INPUT_KEY: &str = "input:";
/// Before a layer's name: the key of one with its weight in fp16.
pub(crate) const FP16_KEY: &str = "fp16:";
/// Before a layer's name: the key of a weight in int8 that is another tool's, and not this layout's.
pub(crate) const FOREIGN_KEY: &str = "foreign:";
/// Before a name: the format of an embedding in 8, 4 or 2 bits.
pub(crate) const EMBEDDING_KEY: &str = "embedding:";
/// All keys of the metadata that begin with one of these are about the layer that they end with.
pub(crate) const OF_LAYERS: [&str; 4] = [INPUT_KEY, FP16_KEY, FOREIGN_KEY, EMBEDDING_KEY];
/// The layout's place in the file's metadata.
pub(crate) const FORMAT_KEY: &str = "fbgemm_format";

pub(crate) fn wrong(name: &str, tensor: &Tensor, expected: &str) -> Error {
    let given = format!("{} {:?}", tensor.dtype(), tensor.shape());
    Error::WrongTensor { name: name.to_string(), given, expected: expected.to_string() }
}

/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn le_bytes<T: Copy, const SIZE: usize>(numbers: &[T], write: impl Fn(T) -> [u8; SIZE]) -> Result<Vec<u8>> {
    let mut bytes = zeroed(numbers.len().saturating_mul(SIZE))?;
    for (chunk, &number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
        *chunk = write(number);
    }
    Ok(bytes)
}

/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn numbers<T: Zeroable, const SIZE: usize>(bytes: &[u8], read: impl Fn([u8; SIZE]) -> T) -> Result<Vec<T>> {
    let (chunks, _) = bytes.as_chunks::<SIZE>();
    let mut numbers = zeroed(chunks.len())?;
    for (number, chunk) in numbers.iter_mut().zip(chunks) {
        *number = read(*chunk);
    }
    Ok(numbers)
}

pub(crate) fn floats(name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
    floats_of(name, tensor, &tensor.data()?)
}

/// Some of a float tensor's bytes, as `f32`.
pub(crate) fn floats_of(name: &str, tensor: &Tensor, bytes: &[u8]) -> Result<Vec<f32>> {
    match tensor.dtype() {
        Dtype::F32 => numbers(bytes, f32::from_le_bytes),
        Dtype::F64 => numbers(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::F16 => numbers(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => numbers(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        _ => Err(wrong(name, tensor, "F32, F64, F16 or BF16")),
    }
}

pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16)
}

/// Writes down how a layer's input is quantized, unless it is the default.
pub(crate) fn note_input(metadata: &mut BTreeMap<String, String>, name: &str, scheme: InputScheme) {
    if scheme != InputScheme::new() {
        metadata.insert(format!("{INPUT_KEY}{name}"), scheme.to_string());
    }
}

/// The tensors of a layer in fp16, and, in the same order, their bytes.
pub(crate) fn fp16_tensors(name: &str, n: usize, k: usize, has_bias: bool) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut tensors = vec![(part_name(name, "weight"), Dtype::F16, vec![n, k])];
    tensors.extend(has_bias.then(|| (part_name(name, "bias"), Dtype::F32, vec![n])));
    tensors
}

pub(crate) fn fp16_bytes<'a>(weight: &[f32], bias: Option<&[f32]>) -> Result<Vec<Cow<'a, [u8]>>> {
    let mut bytes: Vec<Cow<[u8]>> = vec![le_bytes(weight, |w| half::f16::from_f32(w).to_le_bytes())?.into()];
    if let Some(bias) = bias {
        bytes.push(le_bytes(bias, f32::to_le_bytes)?.into());
    }
    Ok(bytes)
}

/// The tensors of a quantized layer, and, in the same order, their bytes.
pub(crate) fn quantized_tensors(
    name: &str,
    n: usize,
    k: usize,
    channels: usize,
    has_bias: bool,
) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut tensors = vec![
        (part_name(name, "weight"), Dtype::I8, vec![n, k]),
        (part_name(name, "scale"), Dtype::F32, vec![channels]),
        (part_name(name, "zero_point"), Dtype::I32, vec![channels]),
        (part_name(name, "col_offsets"), Dtype::I32, vec![n]),
    ];
    tensors.extend(has_bias.then(|| (part_name(name, "bias"), Dtype::F32, vec![n])));
    tensors
}

pub(crate) fn quantized_bytes<'a>(weight: QuantizedWeight, bias: Option<&[f32]>) -> Result<Vec<Cow<'a, [u8]>>> {
    let (data, about) = weight.into_parts();
    // In place: the standard library collects a vector's elements into its own memory where their sizes agree.
    let data: Vec<u8> = data.into_iter().map(|q| q as u8).collect();
    let mut bytes: Vec<Cow<[u8]>> = vec![
        data.into(),
        le_bytes(&about.scales, f32::to_le_bytes)?.into(),
        le_bytes(&about.zero_points, i32::to_le_bytes)?.into(),
        le_bytes(&about.col_offsets, i32::to_le_bytes)?.into(),
    ];
    if let Some(bias) = bias {
        bytes.push(le_bytes(bias, f32::to_le_bytes)?.into());
    }
    Ok(bytes)
}
