//! Embedding tables in files: rows as FBGEMM looks them up, so that a mapped file is a table without a copy.
//!
//! A quantized embedding `x` is `x.weight` (U8, \[rows, bytes of a row\]) and, in the metadata, `embedding:x` = `int8`,
//! `int4` or `int2`. The layout of a row is [`EmbeddingFormat`]'s, the one of PyTorch's `embedding_bag_byte_prepack`;
//! in Python `torch.ops.quantized.embedding_bag_byte_unpack(x)` gives the floats. Scales are not apart from the values:
//! a row is read as one piece of memory. One in fp16 or fp32 is a plain tensor of floats.

use super::format::{EMBEDDING_KEY, floats, wrong};
use super::model_file::ModelFile;
use super::source::Source;
use crate::error::{Error, Result};
use crate::model::names::join_name;
use crate::nn::embedding::Embedding;
use crate::ops::embedding::{EmbeddingFormat, EmbeddingTable};
use safetensors::tensor::Dtype;
use std::borrow::Cow;

impl<'a> ModelFile<'a> {
    /// Names of the embeddings in 8, 4 or 2 bits, in order.
    pub fn embedding_tables(&self) -> impl Iterator<Item = &str> {
        self.metadata().keys().filter_map(|key| key.strip_prefix(EMBEDDING_KEY))
    }

    /// Whether a name is that of an embedding in 8, 4 or 2 bits.
    pub(crate) fn is_table(&self, name: &str) -> bool {
        self.metadata().contains_key(&format!("{EMBEDDING_KEY}{name}"))
    }

    /// An embedding, quantized or in floats, in memory of its own. All its rows are checked.
    ///
    /// # Errors
    /// [`Error::InLayer`] around what is wrong with it: [`Error::InvalidRow`] among it.
    pub fn embedding(&self, name: &str) -> Result<Embedding> {
        let read = || {
            let (format, rows, dimension) = self.table_shape(name)?;
            let tensor = self.tensor(&join_name(name, "weight"))?;
            let bytes = match (format, tensor.dtype()) {
                (EmbeddingFormat::Fp32, dtype) if dtype != Dtype::F32 => {
                    return Embedding::new(floats(&join_name(name, "weight"), &tensor)?, rows, dimension);
                }
                _ => tensor.data()?.into_owned(),
            };
            let table = EmbeddingTable::from_bytes(bytes, format, rows, dimension)?;
            table.check_rows()?;
            Ok(Embedding::Loaded(table))
        };
        read().map_err(|e: Error| e.in_layer(name))
    }

    /// An embedding's table as it lies in the file's bytes, where those are in memory: of a mapped file nothing is read
    /// or copied, whatever its size, and processes that map it share one copy. Rows are checked when they are used.
    ///
    /// ```no_run
    /// # fn map(_: &str) -> &'static [u8] { &[] }
    /// let mapped = map("model.safetensors"); // by the crate memmap2, for one
    /// let file = fbgemm::ModelFile::parse(mapped)?;
    /// let table = file.embedding_table("embeddings.word_embeddings")?;
    /// let rows = fbgemm::embedding(&table, &[101, 2023, 102])?;
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InLayer`] around what is wrong with its type or shape.
    pub fn embedding_table(&self, name: &str) -> Result<EmbeddingTable<'a>> {
        let read = || {
            let full = join_name(name, "weight");
            let (format, rows, dimension) = self.table_shape(name)?;
            let tensor = self.tensor(&full)?;
            if format == EmbeddingFormat::Fp32 && tensor.dtype() != Dtype::F32 {
                return EmbeddingTable::from_f32(floats(&full, &tensor)?, rows, dimension);
            }
            match self.place(&full)? {
                (Source::Bytes(Cow::Borrowed(bytes)), range) => {
                    let bytes: &'a [u8] = &bytes[range.start as usize..range.end as usize];
                    EmbeddingTable::from_bytes(bytes, format, rows, dimension)
                }
                _ => EmbeddingTable::from_bytes(tensor.data()?.into_owned(), format, rows, dimension),
            }
        };
        read().map_err(|e: Error| e.in_layer(name))
    }

    /// An embedding's format, rows and dimension.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongTensor`], [`Error::InvalidScheme`].
    pub(crate) fn table_shape(&self, name: &str) -> Result<(EmbeddingFormat, usize, usize)> {
        let full = join_name(name, "weight");
        let tensor = self.tensor(&full)?;
        let [rows, columns] = tensor.shape()[..] else { return Err(wrong(&full, &tensor, "2 dimensions")) };
        let Some(format) = self.metadata().get(&format!("{EMBEDDING_KEY}{name}")) else {
            return match tensor.dtype() {
                Dtype::F16 => Ok((EmbeddingFormat::Fp16, rows, columns)),
                Dtype::F32 | Dtype::F64 | Dtype::BF16 => Ok((EmbeddingFormat::Fp32, rows, columns)),
                _ => Err(wrong(&full, &tensor, "F32, F64, F16 or BF16")),
            };
        };
        let format: EmbeddingFormat = format.parse()?;
        let dimension = match format {
            EmbeddingFormat::Int8 => columns.checked_sub(8),
            EmbeddingFormat::Int4 => columns.checked_sub(4).map(|bytes| bytes * 2),
            EmbeddingFormat::Int2 => columns.checked_sub(4).map(|bytes| bytes * 4),
            _ => None,
        };
        match dimension.filter(|&dimension| dimension > 0) {
            Some(dimension) if tensor.dtype() == Dtype::U8 => Ok((format, rows, dimension)),
            _ => Err(wrong(&full, &tensor, &format!("U8 [rows, bytes of a row] of {format}"))),
        }
    }
}
