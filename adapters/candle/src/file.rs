//! Files that `fbgemm quantize` wrote, behind candle's `VarBuilder`.
//!
//! A `VarBuilder` gives tensors and nothing else, and candle's have no int8 and no metadata. So a quantized layer `x` has
//! one more tensor in this backend, `x.fbgemm_quantized`, of bytes: what it is, a line's end, and its parts. It is made
//! when it is asked for, and asked for by this package alone.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use fbgemm::{EmbeddingFormat, InputScheme, ModelFile, QuantizedWeight};

/// The tensor of a quantized layer's parts.
const QUANTIZED: &str = "fbgemm_quantized";
const FP16: &str = "fp16";
/// Before the input scheme of a layer in int8.
const INT8: &str = "int8 ";
/// Before the format of an embedding.
const TABLE: &str = "table ";

/// A `VarBuilder` on the CPU from a [`ModelFile`]: a model that `fbgemm quantize` wrote, whose int8 candle's own
/// builders can't read, or a checkpoint in floats. The model's code is the same for both:
/// [`quantized_linear`](crate::quantized_linear) and [`quantized_embedding`](crate::quantized_embedding) take the
/// layers that the file has quantized as they are, and quantize others; norms and other tensors in floats are read by
/// candle's own functions, in this type.
///
/// ```no_run
/// # fn main() -> fbgemm_candle::Result<()> {
/// use candle_core::DType;
/// use fbgemm::{Int8Scheme, ModelFile};
/// use fbgemm_candle::{quantized_linear, var_builder};
///
/// let vb = var_builder(ModelFile::open("model.int8.safetensors")?, DType::F32);
/// let query = quantized_linear(384, 384, Int8Scheme::accurate(), vb.pp("encoder.layer.0.attention.self.query"))?;
/// # Ok(()) }
/// ```
pub fn var_builder(file: ModelFile<'_>, dtype: DType) -> VarBuilder<'_> {
    VarBuilder::from_backend(Box::new(Backend(file)), dtype, Device::Cpu)
}

/// A quantized layer as a file has it.
pub(crate) enum Stored {
    Int8(QuantizedWeight, InputScheme),
    Fp16,
    /// An embedding's format and its rows' bytes.
    Table(EmbeddingFormat, Vec<u8>),
}

/// The layer at a builder's path as its file has it quantized, or None for one in floats.
pub(crate) fn stored(vb: &VarBuilder) -> Result<Option<Stored>> {
    // A builder that makes tensors up has one of any name.
    if vb.contains_tensor("fbgemm_no_such_tensor") {
        return Ok(None);
    }
    if vb.contains_tensor(QUANTIZED) {
        let tensor = vb.get_unchecked_dtype(QUANTIZED, DType::U8)?;
        return decode(&tensor.to_vec1()?).map(Some);
    }
    // By its names a layer of a quantized file, and read by a builder of candle's.
    if vb.contains_tensor("col_offsets") { Err(Error::NeedsVarBuilder) } else { Ok(None) }
}

pub(crate) fn not_this(given: &str, expected: &str) -> Error {
    candle_core::Error::msg(format!("the file has {given} by this name, expected {expected}")).into()
}

struct Backend<'a>(ModelFile<'a>);

impl Backend<'_> {
    /// Whether a name is that of a quantized layer's parts, and the layer's.
    fn quantized<'n>(&self, full: &'n str) -> Option<&'n str> {
        let name = if full == QUANTIZED { "" } else { full.strip_suffix(QUANTIZED)?.strip_suffix('.')? };
        let is_layer = self.0.quantized_layers().any(|layer| layer == name);
        (is_layer || self.0.embedding_tables().any(|table| table == name)).then_some(name)
    }

    fn tensor(&self, full: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = if let Some(name) = self.quantized(full) {
            let bytes = self.encode(name)?;
            let length = bytes.len();
            Tensor::from_vec(bytes, length, &Device::Cpu)?
        } else {
            if !self.contains_tensor(full) {
                return Err(candle_core::Error::CannotFindTensor { path: full.to_string() }.into());
            }
            let (shape, values) = self.0.tensor_f32(full)?;
            Tensor::from_vec(values, shape, &Device::Cpu)?
        };
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    fn encode(&self, name: &str) -> fbgemm::Result<Vec<u8>> {
        if self.0.embedding_tables().any(|table| table == name) {
            let table = self.0.embedding_table(name)?;
            return Ok([format!("{TABLE}{}\n", table.format()).as_bytes(), table.bytes()].concat());
        }
        if self.0.fp16_layers().any(|layer| layer == name) {
            return Ok(format!("{FP16}\n").into_bytes());
        }
        let layer = self.0.portable(name)?;
        let weight = layer.weight();
        let sizes = [weight.out_features(), weight.in_features(), weight.scales().len()];
        let mut bytes = format!("{INT8}{}\n", layer.input_scheme()).into_bytes();
        bytes.extend(sizes.iter().flat_map(|&size| (size as u64).to_le_bytes()));
        bytes.extend(weight.scales().iter().flat_map(|scale| scale.to_le_bytes()));
        bytes.extend(weight.zero_points().iter().flat_map(|zero_point| zero_point.to_le_bytes()));
        bytes.extend_from_slice(bytemuck::cast_slice(weight.data()));
        Ok(bytes)
    }
}

/// What [`Backend::encode`] has made. The file's own tensors can have any name, hence nothing is taken for granted.
fn decode(bytes: &[u8]) -> Result<Stored> {
    let damaged = || Error::from(candle_core::Error::msg(format!("{QUANTIZED} is not what var_builder gives")));
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
    let (about, mut rest) = (std::str::from_utf8(&bytes[..end]).map_err(|_| damaged())?, &bytes[end + 1..]);
    if about == FP16 {
        return Ok(Stored::Fp16);
    }
    if let Some(format) = about.strip_prefix(TABLE) {
        return Ok(Stored::Table(format.parse()?, rest.to_vec()));
    }
    let input: InputScheme = about.strip_prefix(INT8).ok_or_else(damaged)?.parse()?;
    fn take<const SIZE: usize>(rest: &mut &[u8]) -> Option<[u8; SIZE]> {
        let (first, others) = rest.split_first_chunk::<SIZE>()?;
        *rest = others;
        Some(*first)
    }
    let mut sizes = [0; 3];
    for size in &mut sizes {
        *size = take(&mut rest).and_then(|size| usize::try_from(u64::from_le_bytes(size)).ok()).ok_or_else(damaged)?;
    }
    let [n, k, channels] = sizes;
    if channels > rest.len() {
        return Err(damaged());
    }
    let scales: Option<Vec<f32>> = (0..channels).map(|_| take(&mut rest).map(f32::from_le_bytes)).collect();
    let zero_points: Option<Vec<i32>> = (0..channels).map(|_| take(&mut rest).map(i32::from_le_bytes)).collect();
    let (Some(scales), Some(zero_points)) = (scales, zero_points) else { return Err(damaged()) };
    let data = bytemuck::cast_slice(rest).to_vec();
    // A file does not tell apart what a single scale is for, and takes it for the whole weight's.
    let weight = match (&scales[..], &zero_points[..]) {
        (&[scale], &[zero_point]) => QuantizedWeight::per_tensor(data, scale, zero_point, n, k)?,
        _ => QuantizedWeight::per_channel(data, scales, zero_points, n, k)?,
    };
    Ok(Stored::Int8(weight, input))
}

impl SimpleBackend for Backend<'_> {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(name, dtype, dev)?;
        if tensor.shape() != &s {
            let (msg, got) = (format!("shape mismatch for {name}"), tensor.shape().clone());
            return Err(candle_core::Error::UnexpectedShape { msg, expected: s, got }.bt());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        Ok(self.tensor(name, dtype, dev)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.describe(name).is_ok() || self.quantized(name).is_some()
    }
}
