//! Linear layers.

use crate::error::{Error, Result};
use crate::file::{self, Stored};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, DeviceLocation, Layout, MetalStorage, Shape, Storage, Tensor, WithDType,
};
use candle_nn::{Module, VarBuilder};
use fbgemm::{Element, Fp16Linear, LinearScheme};
use std::sync::Arc;

/// The types of inputs, and of weights to be quantized.
const FLOATS: &str = "f32, f16, bf16 or f64";

/// A linear layer with its weight in int8 or fp16, in place of [`candle_nn::Linear`]: the same shapes in and out. A clone
/// shares the weight.
///
/// Inputs are `[.., in_features]` in `f32`, `f16`, `bf16` or `f64`, and the output has their type. A contiguous input is
/// read where it is, and the output is computed into the memory that its tensor keeps: nothing is copied. Of an input
/// that is not contiguous one copy is made, as [`Tensor::contiguous`] does.
///
/// It computes on the calling thread, unless [`with_rayon`](Self::with_rayon) says otherwise. There is no gradient: a
/// backward pass through it is an error.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::Module;
/// use fbgemm::Int8Scheme;
/// use fbgemm_candle::QuantizedLinear;
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
/// let linear = candle_nn::Linear::new(weight, None);
/// let quantized = QuantizedLinear::from_linear(&linear, Int8Scheme::accurate())?;
/// let x = Tensor::new(&[[10f32, 100.]], &Device::Cpu)?;
/// let error = (quantized.forward(&x)? - linear.forward(&x)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
/// assert!(error < 5.0, "{error}"); // of 650
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct QuantizedLinear {
    /// Shares its weight with the operation's.
    layer: fbgemm::Linear,
    operation: Arc<Box<dyn CustomOp1 + Send + Sync>>,
}

impl QuantizedLinear {
    /// Quantizes a weight, `[out_features, in_features]`, for a layer with this bias, `[out_features]`, or none. The
    /// scheme is an [`Int8Scheme`](fbgemm::Int8Scheme) or [`LinearScheme::Fp16`].
    ///
    /// Weights in `f16`, `bf16` and `f64` are quantized to int8 piece by piece, without a copy of the whole in `f32`.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::WrongDType`], [`Error::WrongShape`]; [`Error::Fbgemm`] with those of
    /// [`fbgemm::QuantizedLinear::new`] and [`Fp16Linear::new`].
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, scheme: impl Into<LinearScheme>) -> Result<Self> {
        let expected = || "[out_features, in_features]".to_string();
        let wrong = |given: &[usize]| Error::WrongShape { what: "weight", given: given.to_vec(), expected: expected() };
        let &[n, k] = weight.dims() else { return Err(wrong(weight.dims())) };
        let bias = bias.map(floats).transpose()?;
        let layer = match scheme.into() {
            LinearScheme::Int8(scheme) => {
                let weight = weight.contiguous()?;
                let (storage, layout) = weight.storage_and_layout();
                let storage = cpu(&storage, "weight")?;
                macro_rules! quantize {
                    ($type:ty) => {
                        fbgemm::QuantizedLinear::new(slice::<$type>(storage, layout)?, bias, n, k, scheme)?
                    };
                }
                match storage.dtype() {
                    DType::F32 => quantize!(f32),
                    DType::F16 => quantize!(half::f16),
                    DType::BF16 => quantize!(half::bf16),
                    DType::F64 => quantize!(f64),
                    given => return Err(Error::WrongDType { what: "weight", given, expected: FLOATS }),
                }
                .into()
            }
            LinearScheme::Fp16 => Fp16Linear::new(&floats(weight)?, bias, n, k)?.into(),
            other => {
                let (given, expected) = (format!("{other:?}"), "int8 or fp16");
                return Err(fbgemm::Error::InvalidScheme { what: "layer", given, expected }.into());
            }
        };
        Ok(Self::of(layer, false))
    }

    /// Quantizes a layer; [`new`](Self::new) of its weight and bias.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_linear(linear: &candle_nn::Linear, scheme: impl Into<LinearScheme>) -> Result<Self> {
        Self::new(linear.weight(), linear.bias(), scheme)
    }

    fn of(layer: fbgemm::Linear, rayon: bool) -> Self {
        Self { operation: Arc::new(Box::new(Forward { layer: layer.clone(), rayon })), layer }
    }

    /// The layer, computing on the threads of the current rayon pool where that pays off, as candle's own
    /// multiplications do. The bits are the same.
    pub fn with_rayon(self) -> Self {
        Self::of(self.layer, true)
    }

    /// The layer within: always in int8 or fp16.
    pub fn layer(&self) -> &fbgemm::Linear {
        &self.layer
    }
}

impl From<fbgemm::QuantizedLinear> for QuantizedLinear {
    fn from(layer: fbgemm::QuantizedLinear) -> Self {
        Self::of(layer.into(), false)
    }
}

impl From<Fp16Linear> for QuantizedLinear {
    fn from(layer: Fp16Linear) -> Self {
        Self::of(layer.into(), false)
    }
}

impl Module for QuantizedLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        // A clone of an `Arc`, where `x` is contiguous.
        x.contiguous()?.apply_op1_arc(self.operation.clone())
    }
}

impl std::fmt::Debug for QuantizedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("QuantizedLinear").field(&self.layer).finish()
    }
}

/// [`candle_nn::linear()`], quantized: of a checkpoint in floats by this scheme; of a [file](crate::var_builder) that
/// `fbgemm quantize` wrote, a layer that it quantized comes as it is there, whatever the scheme.
///
/// # Errors
/// [`Error::InLayer`] around those of [`QuantizedLinear::new`] and candle's; [`Error::NeedsVarBuilder`] among them.
pub fn quantized_linear(
    in_features: usize,
    out_features: usize,
    scheme: impl Into<LinearScheme>,
    vb: VarBuilder,
) -> Result<QuantizedLinear> {
    quantized_linear_b(in_features, out_features, true, scheme, vb)
}

/// [`quantized_linear`] without a bias.
///
/// # Errors
/// As [`quantized_linear`].
pub fn quantized_linear_no_bias(
    in_features: usize,
    out_features: usize,
    scheme: impl Into<LinearScheme>,
    vb: VarBuilder,
) -> Result<QuantizedLinear> {
    quantized_linear_b(in_features, out_features, false, scheme, vb)
}

/// [`quantized_linear`] with or without a bias.
///
/// # Errors
/// As [`quantized_linear`].
pub fn quantized_linear_b(
    in_features: usize,
    out_features: usize,
    bias: bool,
    scheme: impl Into<LinearScheme>,
    vb: VarBuilder,
) -> Result<QuantizedLinear> {
    let shape @ (n, k) = (out_features, in_features);
    let read = || {
        let bias = if bias { Some(vb.get(n, "bias")?) } else { None };
        match file::stored(&vb)? {
            None => QuantizedLinear::new(&vb.get(shape, "weight")?, bias.as_ref(), scheme),
            Some(Stored::Fp16) => QuantizedLinear::new(&vb.get(shape, "weight")?, bias.as_ref(), LinearScheme::Fp16),
            Some(Stored::Int8(weight, input)) => {
                let given = vec![weight.out_features(), weight.in_features()];
                if given != [n, k] {
                    return Err(Error::WrongShape { what: "weight", given, expected: format!("{:?}", [n, k]) });
                }
                let bias = bias.as_ref().map(floats).transpose()?;
                Ok(fbgemm::PortableLinear::new(weight, bias)?.with_input(input).pack()?.into())
            }
            Some(Stored::Table(..)) => Err(file::not_this("an embedding", "a linear layer")),
        }
    };
    read().map_err(|e| e.in_layer(vb.prefix()))
}

/// A tensor's values as `f32`.
fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    on_cpu(tensor.device().location(), "bias or weight")?;
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

pub(crate) fn on_cpu(given: DeviceLocation, what: &'static str) -> Result<()> {
    if given == DeviceLocation::Cpu { Ok(()) } else { Err(Error::WrongDevice { what, given }) }
}

/// A tensor's storage on the CPU.
pub(crate) fn cpu<'a>(storage: &'a Storage, what: &'static str) -> Result<&'a CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::WrongDevice { what, given: storage.device().location() }),
    }
}

/// A contiguous tensor's values.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(candle_core::Error::RequiresContiguous { op: "fbgemm" }.into());
    };
    Ok(&storage.as_slice()?[start..end])
}

/// The operation in candle's graph.
struct Forward {
    layer: fbgemm::Linear,
    rayon: bool,
}

impl Forward {
    fn run<T: Element + WithDType>(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, k) = (self.layer.out_features(), self.layer.in_features());
        let mut shape = layout.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == k => *last = n,
            _ => return Err(Error::WrongShape { what: "input", given: shape, expected: format!("[.., {k}]") }),
        }
        let input = slice::<T>(storage, layout)?;
        let output = if self.rayon {
            let mut output = vec![T::default(); input.len() / k * n];
            self.layer.forward_rayon(input, &mut output)?;
            output
        } else {
            self.layer.forward(input)?
        };
        Ok((T::to_cpu_storage_owned(output), Shape::from(shape)))
    }
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        "fbgemm-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(match storage {
            CpuStorage::F32(_) => self.run::<f32>(storage, layout),
            CpuStorage::F16(_) => self.run::<half::f16>(storage, layout),
            CpuStorage::BF16(_) => self.run::<half::bf16>(storage, layout),
            CpuStorage::F64(_) => self.run::<f64>(storage, layout),
            other => Err(Error::WrongDType { what: "input", given: other.dtype(), expected: FLOATS }),
        }?)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Err(elsewhere(storage))
    }

    fn metal_fwd(&self, storage: &MetalStorage, _: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        Err(elsewhere(storage))
    }
}

/// For inputs that are not on the CPU.
pub(crate) fn elsewhere(storage: &impl BackendStorage) -> candle_core::Error {
    Error::WrongDevice { what: "input", given: storage.device().location() }.into()
}
