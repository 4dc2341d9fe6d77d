//! An input quantized once, for every layer that reads it, and the int8 operation on it row by row.

use super::linear_int8::Operands;
use super::per_row::{finish_row, row_sum};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::Params;
use crate::ffi::quantize;
use crate::ffi::scratch::{as_floats, with_operation_buffers};
use crate::ops::lengths::{check_size, same_length};
use crate::quant::input::{InputGranularity, InputScheme};
use crate::quant::range::finite_range;

/// Rows of an input in unsigned 8 bits, quantized once for all the layers that read them: the query, key and value of
/// an attention, or the next layer of a graph whose rows come one by one.
///
/// ```
/// use fbgemm::{InputScheme, Int8Scheme, QuantizedInput, QuantizedLinear};
///
/// let weight = [0.5, -1.0, 0.25, 1.5, 0.0, -0.5]; // 2 outputs, 3 inputs
/// let layer = QuantizedLinear::new(&weight, Some(vec![0.1, 0.2]), 2, 3, Int8Scheme::accurate())?;
/// let x = [1.0, 2.0, 3.0, -1.0, 0.0, 1.0]; // two rows
/// let mut quantized = QuantizedInput::new(3);
/// quantized.extend(&x, InputScheme::new().per_row())?;
/// let mut y = [0.0; 4];
/// layer.forward_quantized(&quantized, &mut y)?;
/// assert_eq!(y[..], layer.forward(&x)?); // the same bits
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedInput {
    in_features: usize,
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    params: Params,
    /// Of its bytes.
    sum: i32,
}

impl QuantizedInput {
    /// No rows yet, of `in_features` each.
    pub fn new(in_features: usize) -> Self {
        Self { in_features, bytes: Vec::new(), rows: Vec::new() }
    }

    /// The length of a row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Forgets the rows, and keeps the memory for others, of `in_features` each.
    pub fn clear(&mut self, in_features: usize) {
        self.in_features = in_features;
        self.bytes.clear();
        self.rows.clear();
    }

    /// Quantizes rows and puts them behind those that are here. What shares a scale by the scheme does so within this
    /// call: with one [per tensor](InputGranularity::PerTensor), all of its rows.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`], [`Error::PartialRow`], [`Error::TooLarge`]; [`Error::NotFinite`] for NaN or infinity;
    /// [`Error::InputOverflow`]; those of [`cpu_support`](crate::cpu_support). The rows of
    /// earlier calls stay.
    pub fn extend(&mut self, input: &[f32], scheme: InputScheme) -> Result<()> {
        let cpu = SupportedCpu::get()?;
        if self.in_features == 0 {
            return Err(Error::ZeroDimension { what: "in_features" });
        }
        let before = (self.bytes.len(), self.rows.len());
        check_size("input", before.1 + super::lengths::rows(input.len(), 1, self.in_features)?, self.in_features)?;
        let shared = match scheme.granularity() {
            InputGranularity::PerRow => None,
            _ => Some(scheme.choose(finite_range(input, "input", cpu)?)?),
        };
        self.bytes.resize(before.0 + input.len(), 0);
        let rows = input.chunks_exact(self.in_features).zip(self.bytes[before.0..].chunks_exact_mut(self.in_features));
        for (i, (from, to)) in rows.enumerate() {
            let quantized = match shared {
                Some(params) => Ok(params),
                None => finite_range(from, "input", cpu).and_then(|range| scheme.choose(range)).map_err(|e| match e {
                    // By its place in the whole input.
                    Error::NotFinite { what, index, value } => {
                        Error::NotFinite { what, index: i * self.in_features + index, value }
                    }
                    other => other,
                }),
            };
            let quantized = quantized.and_then(|params| quantize::to_u8(from, to, params, cpu).map(|()| params));
            match quantized {
                Ok(params) => self.rows.push(Row { params, sum: cpu.with_avx2(|| row_sum(to)) }),
                Err(e) => {
                    self.bytes.truncate(before.0);
                    self.rows.truncate(before.1);
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

impl Operands<'_> {
    /// Computes the outputs for rows that are quantized already, and shows each row with its number to `each`, in
    /// order, while it is in the cache.
    ///
    /// # Errors
    /// Those of a call with floats, and those of `each`, after which no more rows are computed.
    pub(crate) fn run_quantized(
        &self,
        input: &QuantizedInput,
        mut each: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        /// What the sums computed at once may take: they are read again at once, and the level-2 cache also holds the
        /// input and what the weight's next block is.
        const MOST: usize = (512 << 10) / size_of::<i32>();
        /// The weight is read once for all of them.
        const FEWEST: usize = 32;
        let cpu = self.check(&[] as &[f32], &[] as &[f32])?;
        let (width, depth) = (self.weight.out_features, self.weight.in_features);
        same_length("a row of the input", input.in_features, depth)?;
        check_size("output", input.rows(), width)?;
        self.check_quantized(&input.rows)?;
        let (packed, stage) = (self.packed.ffi(), self.stage(false));
        let most = packed.rows_at_once(width).min((MOST / width).max(FEWEST));
        // Equal parts, so that none is of a few rows.
        let parts = input.rows().div_ceil(most).max(1);
        let at_once = input.rows().div_ceil(parts).max(1);
        let pack = packed.pack_len();
        with_operation_buffers([pack, at_once * width, width], |[pack_buffer, sums, output]| {
            let output = as_floats(output);
            for (part, bytes) in input.bytes.chunks(at_once * depth).enumerate() {
                let first = part * at_once;
                let rows = &input.rows[first..][..bytes.len() / depth];
                let sums = &mut sums[..rows.len() * width];
                packed.multiply(bytes, sums, pack_buffer, cpu)?;
                for (i, (row, sums)) in rows.iter().zip(sums.chunks_exact(width)).enumerate() {
                    cpu.with_avx2(|| finish_row(sums, row.sum, row.params, &stage, output));
                    each(first + i, output)?;
                }
            }
            Ok(())
        })
    }

    /// [`check_params`](Self::check_params) for every row.
    fn check_quantized(&self, rows: &[Row]) -> Result<()> {
        let widest = rows.iter().map(|row| row.params.scale).fold(0.0, f32::max);
        if self.check_params(Params { scale: widest, zero_point: 0 }).is_err() {
            rows.iter().try_for_each(|row| self.check_params(row.params).map(drop))?;
        }
        Ok(())
    }
}
