//! Embeddings: tables of rows that are looked up, one by one or in bags.

use crate::error::{Error, Result};
use crate::ops::embedding::{EmbeddingFormat, EmbeddingTable, pack_embedding};
use crate::ops::embedding_bag::{
    BagOptions, EmbeddingIndex, EmbeddingOutput, embedding, embedding_bag, embedding_bag_into, embedding_bag_tasks,
    embedding_into, embedding_tasks,
};

/// An embedding, PyTorch's `nn.Embedding`, in floats or quantized: what a model's struct holds, so that
/// [`quantize_modules`](crate::quantize_modules) can turn the one into the other. A clone shares the table.
///
/// ```
/// use fbgemm::{Embedding, EmbeddingFormat};
///
/// let embedding = Embedding::new(vec![0.5, -1.0, 0.25, 2.0, 7.0, 8.0], 3, 2)?; // 3 rows of 2
/// assert_eq!(embedding.forward(&[2, 0])?, [7.0, 8.0, 0.5, -1.0]);
/// let small = embedding.quantize(EmbeddingFormat::Int8)?;
/// assert_eq!(small.forward(&[2, 0])?, [7.0, 8.0, 0.5, -1.0]); // rows of two values, which 8 bits hold exactly
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Embedding {
    /// With its table, in any format.
    Loaded(EmbeddingTable<'static>),
    /// Without its table: not loaded yet, or unloaded.
    Unloaded {
        /// The number of rows.
        rows: usize,
        /// The elements of a row.
        dimension: usize,
    },
}

impl Embedding {
    /// In fp32: `weight` is row-major, `rows` rows of `dimension`, as PyTorch's `nn.Embedding.weight`.
    ///
    /// # Errors
    /// Those of [`EmbeddingTable::from_f32`].
    pub fn new(weight: Vec<f32>, rows: usize, dimension: usize) -> Result<Self> {
        EmbeddingTable::from_f32(weight, rows, dimension).map(Self::Loaded)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Loaded(table) => table.rows(),
            Self::Unloaded { rows, .. } => *rows,
        }
    }

    /// The elements of a row.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Loaded(table) => table.dimension(),
            Self::Unloaded { dimension, .. } => *dimension,
        }
    }

    /// The table.
    ///
    /// # Errors
    /// [`Error::NotLoaded`].
    pub fn table(&self) -> Result<&EmbeddingTable<'static>> {
        match self {
            Self::Loaded(table) => Ok(table),
            Self::Unloaded { .. } => Err(Error::NotLoaded),
        }
    }

    /// Whether its format is smaller than fp32.
    pub fn is_quantized(&self) -> bool {
        self.table().is_ok_and(|table| table.format() != EmbeddingFormat::Fp32)
    }

    /// What it holds in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.table().map_or(0, |table| table.bytes().len())
    }

    /// The same embedding in another format. A quantized one is unpacked first: what it lost stays lost.
    ///
    /// # Errors
    /// Those of [`pack_embedding`]; [`Error::NotLoaded`].
    pub fn quantize(&self, format: EmbeddingFormat) -> Result<Self> {
        let table = self.table()?;
        pack_embedding(&table.unpack()?, table.rows(), table.dimension(), format).map(Self::Loaded)
    }

    /// The rows with these indices, one after the other: see [`embedding`](crate::embedding).
    ///
    /// # Errors
    /// Those of [`embedding`](crate::embedding); [`Error::NotLoaded`].
    pub fn forward<I: EmbeddingIndex>(&self, indices: &[I]) -> Result<Vec<f32>> {
        embedding(self.table()?, indices)
    }

    /// [`forward`](Self::forward) into the caller's buffer, of `dimension` elements for each index.
    ///
    /// # Errors
    /// Those of [`embedding_into`](crate::embedding_into); [`Error::NotLoaded`].
    pub fn forward_into<I: EmbeddingIndex, T: EmbeddingOutput>(&self, indices: &[I], output: &mut [T]) -> Result<()> {
        embedding_into(self.table()?, indices, output)
    }

    /// [`forward_into`](Self::forward_into) in `tasks` parts on the caller's threads, the same bits for any number: see
    /// [`QuantizedLinear::forward_tasks`](crate::QuantizedLinear::forward_tasks) for `execute`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into); [`Error::InvalidTasks`]; [`Error::TasksLeft`].
    pub fn forward_tasks<I: EmbeddingIndex, T: EmbeddingOutput>(
        &self,
        indices: &[I],
        output: &mut [T],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        embedding_tasks(self.table()?, indices, output, tasks, execute)
    }
}

/// Sums or means of bags of an embedding's rows: PyTorch's `nn.EmbeddingBag`, without its mode `max`.
///
/// ```
/// use fbgemm::{Embedding, EmbeddingBag};
///
/// let bag = EmbeddingBag::mean(Embedding::new(vec![0.5, -1.0, 0.25, 2.0, 7.0, 8.0], 3, 2)?);
/// assert_eq!(bag.forward(&[0, 1, 2], &[0, 2], None)?, [0.375, 0.5, 7.0, 8.0]); // rows 0 and 1, and row 2
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EmbeddingBag {
    pub(crate) embedding: Embedding,
    mean: bool,
    include_last_offset: bool,
    padding_idx: Option<usize>,
}

impl EmbeddingBag {
    /// Sums of rows.
    pub fn sum(embedding: Embedding) -> Self {
        Self { embedding, mean: false, include_last_offset: false, padding_idx: None }
    }

    /// Means of rows: an empty bag's is 0.
    pub fn mean(embedding: Embedding) -> Self {
        Self { mean: true, ..Self::sum(embedding) }
    }

    /// The offsets have one more at the end, the number of indices.
    pub fn with_last_offset(self) -> Self {
        Self { include_last_offset: true, ..self }
    }

    /// Indices of this row don't count: see [`BagOptions::padding_idx`]. (PyTorch's `nn.Embedding` has a `padding_idx`,
    /// too, which is for training: it changes nothing in what [`Embedding::forward`] gives.)
    ///
    /// ```
    /// use fbgemm::{Embedding, EmbeddingBag};
    ///
    /// let embedding = Embedding::new(vec![9.0, 9.0, 0.25, 2.0, 7.0, 8.0], 3, 2)?;
    /// let bag = EmbeddingBag::mean(embedding).with_padding_idx(0);
    /// assert_eq!(bag.forward(&[1, 0, 2, 0], &[0], None)?, [3.625, 5.0]); // of two rows
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    pub fn with_padding_idx(self, row: usize) -> Self {
        Self { padding_idx: Some(row), ..self }
    }

    /// The embedding whose rows these are.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    fn options<'a>(&self, per_sample_weights: Option<&'a [f32]>) -> BagOptions<'a> {
        let options = BagOptions::new();
        let options = if self.mean { options.mean() } else { options };
        let options = if self.include_last_offset { options.include_last_offset() } else { options };
        let options = self.padding_idx.into_iter().fold(options, BagOptions::padding_idx);
        per_sample_weights.into_iter().fold(options, BagOptions::per_sample_weights)
    }

    /// One row of `dimension` elements for each bag: see [`embedding_bag`](crate::embedding_bag).
    ///
    /// # Errors
    /// Those of [`embedding_bag`](crate::embedding_bag); [`Error::NotLoaded`].
    pub fn forward<I: EmbeddingIndex, O: EmbeddingIndex>(
        &self,
        indices: &[I],
        offsets: &[O],
        per_sample_weights: Option<&[f32]>,
    ) -> Result<Vec<f32>> {
        embedding_bag(self.embedding.table()?, indices, offsets, self.options(per_sample_weights))
    }

    /// [`forward`](Self::forward) into the caller's buffer.
    ///
    /// # Errors
    /// Those of [`embedding_bag_into`](crate::embedding_bag_into); [`Error::NotLoaded`].
    pub fn forward_into<I: EmbeddingIndex, O: EmbeddingIndex, T: EmbeddingOutput>(
        &self,
        indices: &[I],
        offsets: &[O],
        per_sample_weights: Option<&[f32]>,
        output: &mut [T],
    ) -> Result<()> {
        embedding_bag_into(self.embedding.table()?, indices, offsets, self.options(per_sample_weights), output)
    }

    /// [`forward_into`](Self::forward_into) in `tasks` parts on the caller's threads, the same bits for any number: see
    /// [`QuantizedLinear::forward_tasks`](crate::QuantizedLinear::forward_tasks) for `execute`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into); [`Error::InvalidTasks`]; [`Error::TasksLeft`].
    pub fn forward_tasks<I: EmbeddingIndex, O: EmbeddingIndex, T: EmbeddingOutput>(
        &self,
        indices: &[I],
        offsets: &[O],
        per_sample_weights: Option<&[f32]>,
        output: &mut [T],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        let options = self.options(per_sample_weights);
        embedding_bag_tasks(self.embedding.table()?, indices, offsets, options, output, tasks, execute)
    }
}

/// With the feature `serde`: stored as the table's bytes with their format and shape, all rows checked when it is read.
#[cfg(feature = "serde")]
mod stored {
    use super::{Embedding, EmbeddingBag};
    use crate::ops::embedding::{EmbeddingFormat, EmbeddingTable};
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Serialize, Serializer};
    use std::borrow::Cow;

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stored<'a> {
        version: u32,
        rows: usize,
        dimension: usize,
        /// None without a table.
        format: Option<String>,
        table: Cow<'a, [u8]>,
    }

    impl Serialize for Embedding {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let table = self.table().ok();
            let (rows, dimension) = (self.rows(), self.dimension());
            let format = table.map(|table| table.format().to_string());
            let table = table.map_or(&[][..], |table| table.bytes()).into();
            Stored { version: 1, rows, dimension, format, table }.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Embedding {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let Stored { version, rows, dimension, format, table } = Stored::deserialize(deserializer)?;
            if version != 1 {
                return Err(D::Error::custom(format!("the embedding has layout version {version}, expected 1")));
            }
            let Some(format) = format else { return Ok(Self::Unloaded { rows, dimension }) };
            let format: EmbeddingFormat = format.parse().map_err(D::Error::custom)?;
            let table = EmbeddingTable::from_bytes(table.into_owned(), format, rows, dimension);
            let table = table.and_then(|table| table.check_rows().map(|()| table));
            table.map(Self::Loaded).map_err(D::Error::custom)
        }
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StoredBag<'a> {
        embedding: Cow<'a, Embedding>,
        mean: bool,
        include_last_offset: bool,
        #[serde(default)] // not there in what earlier versions stored
        padding_idx: Option<usize>,
    }

    impl Serialize for EmbeddingBag {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self { embedding, mean, include_last_offset, padding_idx } = self;
            let stored = StoredBag {
                embedding: Cow::Borrowed(embedding),
                mean: *mean,
                include_last_offset: *include_last_offset,
                padding_idx: *padding_idx,
            };
            stored.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for EmbeddingBag {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let StoredBag { embedding, mean, include_last_offset, padding_idx } = StoredBag::deserialize(deserializer)?;
            Ok(Self { embedding: embedding.into_owned(), mean, include_last_offset, padding_idx })
        }
    }
}
