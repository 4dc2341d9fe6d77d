//! Embedding tables: their formats, packing and unpacking, and the tables that look-ups read.

use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::embedding::{self, Kernels, SLACK};
use crate::ffi::rows::{Floats, MAX_DIMENSION, Table, row_bytes, scale_bytes};
use crate::ffi::scratch::zeroed;
use crate::quant::range::finite_range;
use std::ops::Range;
use std::sync::Arc;

/// What a table's elements are stored as. A row is its elements, and where they are quantized its own scale and bias
/// behind them: an element stands for `scale * q + bias`. All numbers are little-endian, and no row is padded.
///
/// This is FBGEMM's "fused rowwise" layout, byte for byte what PyTorch's `quantized::embedding_bag_byte_prepack`,
/// `embedding_bag_4bit_prepack` and `embedding_bag_2bit_prepack` give. It is the same on every CPU: tables may be
/// stored, sent and mapped into memory as they are.
///
/// | format | elements | scale and bias | bytes of a row |
/// |---|---|---|---|
/// | `Fp32` | f32 | none | 4 · dimension |
/// | `Fp16` | f16 | none | 2 · dimension |
/// | `Int8` | u8 | f32, f32 | dimension + 8 |
/// | `Int4` | 4 bits: the first of two in a byte's lower half | f16, f16 | dimension / 2 + 4 |
/// | `Int2` | 2 bits: the first of four in a byte's lowest bits | f16, f16 | dimension / 4 + 4 |
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EmbeddingFormat {
    /// Floats of 32 bits.
    Fp32,
    /// Floats of 16 bits.
    Fp16,
    /// Quantized to 8 bits.
    Int8,
    /// Quantized to 4 bits; the dimension is a multiple of 2.
    Int4,
    /// Quantized to 2 bits; the dimension is a multiple of 4.
    Int2,
}

impl EmbeddingFormat {
    /// The bits of an element.
    pub fn bits(self) -> u32 {
        match self {
            Self::Fp32 => 32,
            Self::Fp16 => 16,
            Self::Int8 => 8,
            Self::Int4 => 4,
            Self::Int2 => 2,
        }
    }

    /// The bytes of a row of `dimension` elements.
    ///
    /// ```
    /// assert_eq!(fbgemm::EmbeddingFormat::Int4.row_bytes(64)?, 64 / 2 + 4);
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ZeroDimension`]; [`Error::IndivisibleDimension`] where the elements are not whole bytes;
    /// [`Error::TooLarge`] beyond 2²⁰ elements.
    pub fn row_bytes(self, dimension: usize) -> Result<usize> {
        if dimension == 0 {
            return Err(Error::ZeroDimension { what: "dimension" });
        }
        if dimension > MAX_DIMENSION {
            return Err(Error::TooLarge { what: "row", rows: 1, columns: dimension, limit: MAX_DIMENSION });
        }
        let bits = self.bits();
        let multiple = (8 / bits).max(1) as usize;
        if !dimension.is_multiple_of(multiple) {
            return Err(Error::IndivisibleDimension { dimension, bits, multiple });
        }
        Ok(row_bytes(bits, dimension))
    }

    /// The bytes of a table, for memory that holds one.
    fn table_bytes(self, rows: usize, dimension: usize) -> Result<usize> {
        let limit = isize::MAX as usize;
        let bytes = rows.checked_mul(self.row_bytes(dimension)?).filter(|&bytes| bytes <= limit);
        bytes.ok_or(Error::TooLarge { what: "table", rows, columns: dimension, limit })
    }
}

/// As files and options have it: `fp32`, `fp16`, `int8`, `int4`, `int2`.
impl std::fmt::Display for EmbeddingFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int2 => "int2",
        })
    }
}

impl std::str::FromStr for EmbeddingFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Fp32, Self::Fp16, Self::Int8, Self::Int4, Self::Int2];
        let expected = "fp32, fp16, int8, int4 or int2";
        let invalid = || Error::InvalidScheme { what: "embedding", given: text.to_string(), expected };
        all.into_iter().find(|format| format.to_string() == text).ok_or_else(invalid)
    }
}

/// A table of embeddings: `rows` rows of `dimension` elements in an [`EmbeddingFormat`], for
/// [`embedding`](crate::embedding) and [`embedding_bag`](crate::embedding_bag).
///
/// Its bytes are its own, or shared, or borrowed, as from a mapped file: making a table of them reads none of them, so
/// that it costs the same for any size, and processes that map one file share one copy. `Send + Sync`, for any number
/// of threads at once; a clone shares the bytes, and FBGEMM's kernels, which are generated when they are first used.
///
/// ```
/// use fbgemm::{EmbeddingFormat, EmbeddingTable};
/// let table = fbgemm::pack_embedding(&[0.0, 1.0, 2.0, 3.0, 8.0, 4.0], 3, 2, EmbeddingFormat::Int8)?;
/// let stored: &[u8] = table.bytes();
/// let again = EmbeddingTable::from_bytes(stored, EmbeddingFormat::Int8, 3, 2)?; // borrows
/// assert_eq!(fbgemm::embedding(&again, &[2, 0])?, [8.0, 4.0, 0.0, 1.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone)]
pub struct EmbeddingTable<'a> {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync + 'a>,
    range: Range<usize>,
    format: EmbeddingFormat,
    rows: usize,
    dimension: usize,
    row_bytes: usize,
    /// Whether look-ups see to it that no row they used has a scale or bias that is not finite.
    stored: bool,
    kernels: Arc<Kernels>,
}

impl<'a> EmbeddingTable<'a> {
    /// From a table's bytes: a `Vec<u8>`, a slice, a mapped file. They are not read. Scales and biases are checked in
    /// the rows that a look-up uses; for all rows at once, as when a file is loaded, there is
    /// [`check_rows`](Self::check_rows).
    ///
    /// Rows of 4 bits whose dimension is 50, 52 or 54 more than a multiple of 64 are read up to 3 bytes beyond their end
    /// by FBGEMM. A look-up of the last row then copies its bag's rows first, unless it finds so many bytes behind the
    /// table: see [`from_shared`](Self::from_shared).
    ///
    /// Random rows of large tables are found faster, by up to three times, where the memory has huge pages: as
    /// [`pack_embedding`] asks for by itself, so can a mapping (`madvise` with `MADV_HUGEPAGE`, where the file system
    /// has them).
    ///
    /// The bytes must stay as they are as long as the table lives; should another process change a file that is
    /// mapped, results are not defined, but nothing beyond the mapping is read.
    ///
    /// # Errors
    /// [`Error::WrongLength`] unless the bytes are those of `rows` rows; those of [`EmbeddingFormat::row_bytes`];
    /// [`Error::TooLarge`] for a table beyond the address space.
    pub fn from_bytes(
        bytes: impl AsRef<[u8]> + Send + Sync + 'a,
        format: EmbeddingFormat,
        rows: usize,
        dimension: usize,
    ) -> Result<Self> {
        let range = 0..bytes.as_ref().len();
        Self::from_shared(Arc::new(bytes), range, format, rows, dimension)
    }

    /// As [`from_bytes`](Self::from_bytes), from a part of shared bytes, as of a mapped file with several tables.
    ///
    /// ```
    /// use fbgemm::{EmbeddingFormat, EmbeddingTable};
    /// use std::sync::Arc;
    /// let file = Arc::new(vec![7, 7, 0, 0, 0x80, 0x3f]);
    /// let table = EmbeddingTable::from_shared(file, 2..6, EmbeddingFormat::Fp32, 1, 1)?;
    /// assert_eq!(table.unpack()?, [1.0]);
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes); [`Error::WrongLength`] for a range that is not within the bytes.
    pub fn from_shared(
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync + 'a>,
        range: Range<usize>,
        format: EmbeddingFormat,
        rows: usize,
        dimension: usize,
    ) -> Result<Self> {
        let expected = format.table_bytes(rows, dimension)?;
        let given = (*bytes).as_ref().get(range.clone()).map_or(0, <[u8]>::len);
        if given != expected {
            return Err(Error::WrongLength { what: "table", given, expected });
        }
        let kernels = Arc::new(Kernels::new(format.bits(), dimension));
        let row_bytes = format.row_bytes(dimension)?;
        Ok(Self { bytes, range, format, rows, dimension, row_bytes, stored: true, kernels })
    }

    /// A table of floats as they are, without a copy: PyTorch's `nn.Embedding.weight`, row-major, `rows` rows of
    /// `dimension`.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn from_f32(weight: Vec<f32>, rows: usize, dimension: usize) -> Result<Self> {
        let expected = EmbeddingFormat::Fp32.table_bytes(rows, dimension)? / size_of::<f32>();
        if weight.len() != expected {
            return Err(Error::WrongLength { what: "weight", given: weight.len(), expected });
        }
        Self::from_bytes(Floats(weight), EmbeddingFormat::Fp32, rows, dimension)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of elements of a row: PyTorch's `embedding_dim`.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// What the elements are stored as.
    pub fn format(&self) -> EmbeddingFormat {
        self.format
    }

    /// The table's bytes, to be stored.
    pub fn bytes(&self) -> &[u8] {
        // Asked each time: should the owner have fewer bytes now than at first, this is a panic.
        &(*self.bytes).as_ref()[self.range.clone()]
    }

    /// Where the rows lie, and what lies behind them.
    #[inline]
    pub(crate) fn place(&self) -> Table<'_> {
        Table { memory: &(*self.bytes).as_ref()[self.range.start..], rows: self.rows }
    }

    /// All rows as floats: PyTorch's `quantized::embedding_bag_byte_unpack` and its kind.
    ///
    /// ```
    /// let table = fbgemm::pack_embedding(&[0.0, 1.0, 2.0, 3.0], 1, 4, fbgemm::EmbeddingFormat::Int2)?;
    /// assert_eq!(table.unpack()?, [0.0, 1.0, 2.0, 3.0]);
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; and as [`unpack_rows_into`](Self::unpack_rows_into).
    pub fn unpack(&self) -> Result<Vec<f32>> {
        let elements = self.rows.checked_mul(self.dimension).ok_or(Error::OutOfMemory { bytes: usize::MAX })?;
        let mut output = zeroed(elements)?;
        self.unpack_rows_into(0..self.rows, &mut output)?;
        Ok(output)
    }

    /// Some rows as floats, into the caller's buffer, which has as many elements.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`] for rows that there are not; [`Error::WrongLength`] for the output;
    /// [`Error::InvalidRow`] for a stored row whose scale or bias is not finite; and those of
    /// [`cpu_support`](crate::cpu_support).
    pub fn unpack_rows_into(&self, rows: Range<usize>, output: &mut [f32]) -> Result<()> {
        let cpu = SupportedCpu::get()?;
        if !rows.is_empty() && rows.end > self.rows {
            let index = i64::try_from(rows.end - 1).unwrap_or(i64::MAX);
            return Err(Error::IndexOutOfRange { index, position: rows.len() - 1, rows: self.rows });
        }
        let expected = rows.len().saturating_mul(self.dimension);
        if output.len() != expected {
            return Err(Error::WrongLength { what: "output", given: output.len(), expected });
        }
        let width = self.row_bytes;
        if rows.is_empty() {
            return Ok(());
        }
        let memory = &self.place().memory[rows.start * width..];
        let bytes = &memory[..rows.len() * width];
        if self.stored {
            check_rows(bytes, rows.start, width, self.format)?;
        }
        if self.format == EmbeddingFormat::Fp32 {
            for (value, bytes) in output.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            return Ok(());
        }
        embedding::unpack(self.format.bits(), self.dimension, memory, output, cpu)
    }

    /// Checks the scale and bias of every row, once, as when a table is loaded: a look-up checks those that it uses, at
    /// about 1 % of the time of large calls (19 % of 64 bags of one row of 16), but only when it comes across them. All of a table's pages are read.
    ///
    /// ```
    /// use fbgemm::{EmbeddingFormat, EmbeddingTable, Error};
    /// let mut bytes = fbgemm::pack_embedding(&[0.0, 1.0, 2.0, 3.0], 2, 2, EmbeddingFormat::Int8)?.bytes().to_vec();
    /// bytes[12..16].copy_from_slice(&f32::NAN.to_le_bytes()); // the second row's scale
    /// let table = EmbeddingTable::from_bytes(bytes, EmbeddingFormat::Int8, 2, 2)?;
    /// assert!(matches!(table.check_rows(), Err(Error::InvalidRow { row: 1, .. })));
    /// assert_eq!(fbgemm::embedding(&table, &[0])?, [0.0, 1.0]);
    /// assert!(matches!(fbgemm::embedding(&table, &[0, 1]), Err(Error::InvalidRow { row: 1, .. })));
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidRow`] with the first row whose scale or bias is NaN or infinite. Rows of floats have none, and
    /// their elements may be anything, as PyTorch's.
    pub fn check_rows(&self) -> Result<()> {
        check_rows(self.bytes(), 0, self.row_bytes, self.format)
    }

    /// [`check_rows`](Self::check_rows) of one.
    pub(crate) fn check_row(&self, row: usize) -> Result<()> {
        let width = self.row_bytes;
        check_rows(&self.bytes()[row * width..(row + 1) * width], row, width, self.format)
    }

    /// Whether a look-up checks the scales and biases that it uses: of rows that [`pack_embedding`] did not make.
    #[inline]
    pub(crate) fn checks_rows(&self) -> bool {
        self.stored && scale_bytes(self.format.bits()) > 0
    }

    #[inline]
    pub(crate) fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

impl std::fmt::Debug for EmbeddingTable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddingTable")
            .field("format", &self.format)
            .field("rows", &self.rows)
            .field("dimension", &self.dimension)
            .finish_non_exhaustive()
    }
}

/// Quantizes a table of embeddings, each row by itself, with FBGEMM's own kernels: bit-identical to PyTorch's
/// `quantized::embedding_bag_byte_prepack`, `embedding_bag_4bit_prepack` and `embedding_bag_2bit_prepack`, and to
/// `weight.half()` for [`Fp16`](EmbeddingFormat::Fp16).
///
/// `weight` is row-major, `rows` rows of `dimension` (PyTorch's `nn.Embedding.weight`).
///
/// Finite weights can be too large for a format, whose numbers then overflow to infinity, as PyTorch's do: beyond 65504
/// in `Fp16`, a smallest value or a step beyond it in `Int4` and `Int2`, a range beyond `f32` in `Int8`.
/// [`EmbeddingTable::check_rows`] finds such rows of quantized tables.
///
/// ```
/// use fbgemm::EmbeddingFormat;
/// let table = fbgemm::pack_embedding(&[0.5, -1.0, 0.25, 2.0], 2, 2, EmbeddingFormat::Int8)?;
/// assert_eq!((table.rows(), table.dimension(), table.bytes().len()), (2, 2, 2 * (2 + 8)));
/// assert_eq!(table.unpack()?, [0.5, -1.0, 0.25, 2.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::WrongLength`]; [`Error::NotFinite`] for a weight that is NaN or infinite; those of
/// [`EmbeddingFormat::row_bytes`]; [`Error::OutOfMemory`]; and those of [`cpu_support`](crate::cpu_support).
pub fn pack_embedding(
    weight: &[f32],
    rows: usize,
    dimension: usize,
    format: EmbeddingFormat,
) -> Result<EmbeddingTable<'static>> {
    let size = format.table_bytes(rows, dimension)?;
    // Before the memory for as many rows as are claimed, whose elements can be more than a `usize` counts.
    let expected = rows.saturating_mul(dimension);
    if weight.len() != expected {
        return Err(Error::WrongLength { what: "weight", given: weight.len(), expected });
    }
    // FBGEMM never has to make do with what lies behind the last row.
    let mut bytes = embedding::memory_for(size.saturating_add(SLACK))?;
    pack_embedding_into(weight, dimension, format, &mut bytes[..size])?;
    let table = EmbeddingTable::from_shared(Arc::new(bytes), 0..size, format, rows, dimension)?;
    Ok(EmbeddingTable { stored: false, ..table })
}

/// [`pack_embedding`] of any number of rows into the caller's buffer, which has
/// [`row_bytes`](EmbeddingFormat::row_bytes) for each: a table that memory does not hold twice is packed so in parts,
/// as into a mapped file.
///
/// # Errors
/// As [`pack_embedding`]; [`Error::WrongLength`] for a weight of other than whole rows, and for the output. On an error
/// the output is as it was, unless FBGEMM itself failed ([`Error::Fbgemm`]).
pub fn pack_embedding_into(weight: &[f32], dimension: usize, format: EmbeddingFormat, output: &mut [u8]) -> Result<()> {
    let cpu = SupportedCpu::get()?;
    let width = format.row_bytes(dimension)?;
    let rows = output.len() / width;
    let expected = weight.len() / dimension * width;
    if output.len() != expected {
        return Err(Error::WrongLength { what: "output", given: output.len(), expected });
    }
    if weight.len() != rows * dimension {
        return Err(Error::WrongLength { what: "weight", given: weight.len(), expected: rows * dimension });
    }
    finite_range(weight, "weight", cpu)?;
    if format == EmbeddingFormat::Fp32 {
        for (bytes, value) in output.as_chunks_mut().0.iter_mut().zip(weight) {
            *bytes = value.to_le_bytes();
        }
        return Ok(());
    }
    embedding::pack(format.bits(), dimension, weight, output, cpu)
}

/// Checks scale and bias of whole rows, the first of which is the table's row `first`.
fn check_rows(bytes: &[u8], first: usize, width: usize, format: EmbeddingFormat) -> Result<()> {
    let elements = width - scale_bytes(format.bits());
    if elements == width {
        return Ok(());
    }
    for (row, bytes) in bytes.chunks_exact(width).enumerate() {
        let invalid = match bytes[elements..] {
            [a, b, c, d, e, f, g, h] => {
                let (scale, bias) = (f32::from_le_bytes([a, b, c, d]), f32::from_le_bytes([e, f, g, h]));
                (!scale.is_finite() || !bias.is_finite()).then_some((scale, bias))
            }
            [a, b, c, d] => {
                const EXPONENT: u16 = 0x7c00;
                let (scale, bias) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
                let infinite = |half: u16| half & EXPONENT == EXPONENT;
                (infinite(scale) || infinite(bias)).then(|| (widen(scale), widen(bias)))
            }
            _ => unreachable!("scale and bias have 8 bytes or 4"),
        };
        if let Some((scale, bias)) = invalid {
            return Err(Error::InvalidRow { row: first + row, scale, bias });
        }
    }
    Ok(())
}

/// An f16's value.
fn widen(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (fraction + 1024.0) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}
