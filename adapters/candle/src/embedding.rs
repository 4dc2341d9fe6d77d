//! Embeddings.

use crate::error::{Error, Result};
use crate::file::{self, Stored};
use crate::linear::{cpu, elsewhere, on_cpu, slice};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, MetalStorage, Shape, Tensor, WithDType};
use candle_nn::{Module, VarBuilder};
use fbgemm::{EmbeddingFormat, EmbeddingIndex, EmbeddingOutput, EmbeddingTable, embedding_into, pack_embedding};
use half::f16;
use std::sync::Arc;

/// An embedding in 8, 4 or 2 bits, fp16 or fp32, in place of [`candle_nn::Embedding`]: for indices of any shape it
/// gives a row of `dimension` elements each. A clone shares the table.
///
/// Indices are in `u32`, `i64`, `i32` or `u8`. Those that are contiguous are read where they are, but for `u8`, and
/// the output is computed into the memory that its tensor keeps. Outputs are in the type of the weight that it was made
/// of, or the one of [`with_dtype`](Self::with_dtype): `f32`, `f16`, or `bf16`, for which the output is converted once.
///
/// An index beyond the table is an error; candle's own embedding takes the largest `u32`, `i64` or `u8` for a row of
/// zeros.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::Module;
/// use fbgemm::EmbeddingFormat;
/// use fbgemm_candle::QuantizedEmbedding;
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = Tensor::new(&[[0f32, 1.0], [2.0, 3.0], [8.0, 4.0]], &Device::Cpu)?;
/// let embedding = QuantizedEmbedding::new(&weight, EmbeddingFormat::Int8)?;
/// let ids = Tensor::new(&[[2u32, 0]], &Device::Cpu)?;
/// assert_eq!(embedding.forward(&ids)?.to_vec3::<f32>()?, [[[8.0, 4.0], [0.0, 1.0]]]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct QuantizedEmbedding {
    /// Shares its bytes with the operation's.
    table: EmbeddingTable<'static>,
    dtype: DType,
    operation: Arc<Box<dyn CustomOp1 + Send + Sync>>,
}

impl QuantizedEmbedding {
    /// Quantizes a weight, `[rows, dimension]`, in `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::WrongDType`], [`Error::WrongShape`]; [`Error::Fbgemm`] with those of
    /// [`pack_embedding`].
    pub fn new(weight: &Tensor, format: EmbeddingFormat) -> Result<Self> {
        on_cpu(weight.device().location(), "weight")?;
        let &[rows, dimension] = weight.dims() else {
            let (given, expected) = (weight.dims().to_vec(), "[rows, dimension]".to_string());
            return Err(Error::WrongShape { what: "weight", given, expected });
        };
        check_output(weight.dtype(), "weight")?;
        // In f32 and contiguous already it is the same tensor.
        let floats = weight.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = floats.storage_and_layout();
        let table = pack_embedding(slice::<f32>(cpu(&storage, "weight")?, layout)?, rows, dimension, format)?;
        Ok(Self::of(table, weight.dtype()))
    }

    /// Quantizes an embedding; [`new`](Self::new) of its weight.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_embedding(embedding: &candle_nn::Embedding, format: EmbeddingFormat) -> Result<Self> {
        Self::new(embedding.embeddings(), format)
    }

    fn of(table: EmbeddingTable<'static>, dtype: DType) -> Self {
        let half = dtype == DType::F16;
        Self { operation: Arc::new(Box::new(LookUp { table: table.clone(), half })), table, dtype }
    }

    /// The embedding with outputs in another type.
    ///
    /// # Errors
    /// [`Error::WrongDType`] for others than `f32`, `f16` and `bf16`.
    pub fn with_dtype(self, dtype: DType) -> Result<Self> {
        check_output(dtype, "output")?;
        Ok(Self::of(self.table, dtype))
    }

    /// The table within.
    pub fn table(&self) -> &EmbeddingTable<'static> {
        &self.table
    }
}

fn check_output(given: DType, what: &'static str) -> Result<()> {
    match given {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        _ => Err(Error::WrongDType { what, given, expected: "f32, f16 or bf16" }),
    }
}

/// With outputs in `f32`: a table from a mapped file, for one.
impl From<EmbeddingTable<'static>> for QuantizedEmbedding {
    fn from(table: EmbeddingTable<'static>) -> Self {
        Self::of(table, DType::F32)
    }
}

impl Module for QuantizedEmbedding {
    fn forward(&self, indices: &Tensor) -> candle_core::Result<Tensor> {
        // A clone of an `Arc`, where `indices` are contiguous.
        let output = indices.contiguous()?.apply_op1_arc(self.operation.clone())?;
        if self.dtype == DType::BF16 { output.to_dtype(DType::BF16) } else { Ok(output) }
    }
}

impl std::fmt::Debug for QuantizedEmbedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizedEmbedding").field("table", &self.table).field("dtype", &self.dtype).finish()
    }
}

/// [`candle_nn::embedding()`], quantized: of a checkpoint in floats to this format; of a [file](crate::var_builder) that
/// `fbgemm quantize` wrote, an embedding that it quantized comes as it is there, whatever the format. Outputs are in the
/// builder's type.
///
/// # Errors
/// [`Error::InLayer`] around those of [`QuantizedEmbedding::new`] and candle's.
pub fn quantized_embedding(
    rows: usize,
    dimension: usize,
    format: EmbeddingFormat,
    vb: VarBuilder,
) -> Result<QuantizedEmbedding> {
    let read = || match file::stored(&vb)? {
        None => QuantizedEmbedding::new(&vb.get((rows, dimension), "weight")?, format),
        Some(Stored::Table(format, bytes)) => {
            let table = EmbeddingTable::from_bytes(bytes, format, rows, dimension)?;
            table.check_rows()?;
            QuantizedEmbedding::from(table).with_dtype(vb.dtype())
        }
        Some(_) => Err(file::not_this("a linear layer", "an embedding")),
    };
    read().map_err(|e| e.in_layer(vb.prefix()))
}

/// The operation in candle's graph.
struct LookUp {
    table: EmbeddingTable<'static>,
    /// Outputs in fp16, to which FBGEMM rounds them itself; else in fp32.
    half: bool,
}

impl LookUp {
    fn run<I: EmbeddingIndex>(&self, indices: &[I], layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = Shape::from([layout.dims(), &[self.table.dimension()]].concat());
        let storage = if self.half { self.rows::<_, f16>(indices)? } else { self.rows::<_, f32>(indices)? };
        Ok((storage, shape))
    }

    fn rows<I: EmbeddingIndex, T: EmbeddingOutput + WithDType>(&self, indices: &[I]) -> fbgemm::Result<CpuStorage> {
        let elements = indices.len().checked_mul(self.table.dimension());
        let elements = elements.ok_or(fbgemm::Error::OutOfMemory { bytes: usize::MAX })?;
        let mut output = vec![T::zero(); elements];
        embedding_into(&self.table, indices, &mut output)?;
        Ok(T::to_cpu_storage_owned(output))
    }
}

impl CustomOp1 for LookUp {
    fn name(&self) -> &'static str {
        "fbgemm-embedding"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(match storage {
            // Those beyond `i32` become negative, and are no rows either way.
            CpuStorage::U32(_) => {
                self.run::<i32>(bytemuck::cast_slice(slice::<u32>(storage, layout)?), layout).map_err(|e| match e {
                    Error::Fbgemm(fbgemm::Error::IndexOutOfRange { index, position, rows }) => {
                        let index = i64::from(index as u32);
                        fbgemm::Error::IndexOutOfRange { index, position, rows }.into()
                    }
                    other => other,
                })
            }
            CpuStorage::I64(_) => self.run::<i64>(slice(storage, layout)?, layout),
            CpuStorage::I32(_) => self.run::<i32>(slice(storage, layout)?, layout),
            CpuStorage::U8(_) => {
                let indices: Vec<i32> = slice::<u8>(storage, layout)?.iter().map(|&index| index.into()).collect();
                self.run(&indices, layout)
            }
            other => Err(Error::WrongDType { what: "input", given: other.dtype(), expected: "u32, i64, i32 or u8" }),
        }?)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Err(elsewhere(storage))
    }

    fn metal_fwd(&self, storage: &MetalStorage, _: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        Err(elsewhere(storage))
    }
}
