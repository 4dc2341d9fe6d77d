//! Look-ups in embedding tables: row by row, and sums and means of bags of rows.

use crate::error::{Error, Result};
use crate::ffi::embedding::Kernels;
use crate::ffi::rows::{Table, sealed};
use crate::ffi::scratch::{with_conversion_buffer, with_index_buffer, zeroed};
use crate::ffi::tasks;
use crate::ops::embedding::{EmbeddingFormat, EmbeddingTable};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A type of indices and offsets: `i32` and `i64`, as PyTorch's.
pub trait EmbeddingIndex: sealed::Integer {}
impl EmbeddingIndex for i32 {}
impl EmbeddingIndex for i64 {}

/// A type of outputs: `f32`, and with the feature `half` `half::f16`, to which FBGEMM rounds its sums, to nearest, ties
/// to even.
pub trait EmbeddingOutput: sealed::Float {}
impl EmbeddingOutput for f32 {}
#[cfg(feature = "half")]
impl EmbeddingOutput for half::f16 {}

/// What [`embedding_bag`] makes of a bag's rows: by default their sum, the offsets being the bags' first indices alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct BagOptions<'a> {
    mean: bool,
    per_sample_weights: Option<&'a [f32]>,
    include_last_offset: bool,
    padding_idx: Option<usize>,
}

impl<'a> BagOptions<'a> {
    /// Sums.
    pub fn new() -> Self {
        Self::default()
    }

    /// Means, as PyTorch's `nn.EmbeddingBag` defines them: the sum divided by the number of rows; for outputs in fp16
    /// the sum rounded to fp16, divided by the number of rows rounded to fp16.
    pub fn mean(self) -> Self {
        Self { mean: true, ..self }
    }

    /// A factor for each index's row; for sums alone, as in PyTorch.
    pub fn per_sample_weights(self, weights: &'a [f32]) -> Self {
        Self { per_sample_weights: Some(weights), ..self }
    }

    /// The offsets have one more at the end, the number of indices.
    pub fn include_last_offset(self) -> Self {
        Self { include_last_offset: true, ..self }
    }

    /// Indices of this row don't count: they are neither added up nor part of a mean's number of rows, as with PyTorch's
    /// `padding_idx` (whose negative ones count from the end: -1 is the table's rows less 1).
    pub fn padding_idx(self, row: usize) -> Self {
        Self { padding_idx: Some(row), ..self }
    }
}

/// The rows of a table with these indices, one after the other: PyTorch's `quantized::embedding_byte` and
/// `embedding_4bit`, and `F.embedding` for floats. Bit-identical to them.
///
/// ```
/// use fbgemm::EmbeddingFormat;
/// let table = fbgemm::pack_embedding(&[0.5, -1.0, 0.25, 2.0, 7.0, 8.0], 3, 2, EmbeddingFormat::Int8)?;
/// assert_eq!(fbgemm::embedding(&table, &[1, 0, 1])?, [0.25, 2.0, 0.5, -1.0, 0.25, 2.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::IndexOutOfRange`] with the first index that is no row's; [`Error::InvalidRow`] with the first row used of a
/// stored table whose scale or bias is not finite; [`Error::OutOfMemory`]; and those of
/// [`cpu_support`](crate::cpu_support).
pub fn embedding<I: EmbeddingIndex>(table: &EmbeddingTable, indices: &[I]) -> Result<Vec<f32>> {
    let mut output = new_output(table, indices.len())?;
    embedding_into(table, indices, &mut output)?;
    Ok(output)
}

/// [`embedding`] into the caller's buffer, which has `dimension` elements for each index. Nothing is allocated, but by
/// the first call with a table and these types, which generates FBGEMM's kernel.
///
/// # Errors
/// As [`embedding`], and [`Error::WrongLength`] for the output. On an error with an index or row the output's content
/// is not defined.
pub fn embedding_into<I: EmbeddingIndex, T: EmbeddingOutput>(
    table: &EmbeddingTable,
    indices: &[I],
    output: &mut [T],
) -> Result<()> {
    embedding_tasks(table, indices, output, 1, |task| task(0))
}

/// [`embedding_into`] in `tasks` parts on the caller's threads, the same bits for any number of tasks: see
/// [`QuantizedLinear::forward_tasks`](crate::QuantizedLinear::forward_tasks) for `execute`.
///
/// # Errors
/// As [`embedding_into`]; [`Error::InvalidTasks`] unless `tasks` is 1 to 1024; [`Error::TasksLeft`] if `execute`
/// returned before every task had run, the output then being incomplete.
pub fn embedding_tasks<I: EmbeddingIndex, T: EmbeddingOutput>(
    table: &EmbeddingTable,
    indices: &[I],
    output: &mut [T],
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
) -> Result<()> {
    check_output(table, indices.len(), output.len())?;
    let (kernels, rows) = (table.kernels(), table.place());
    let look_up = |part: Range<usize>, output: &mut [T]| kernels.rows(&rows, &indices[part], output);
    run(table, indices.len(), indices, None, output, tasks, execute, look_up)
}

/// The sums or means of bags of a table's rows: bit-identical to PyTorch's
/// `quantized::embedding_bag_byte_rowwise_offsets` and its kind, which sum, and to `F.embedding_bag` for floats (in
/// fp16 with [`embedding_bag_into`]).
///
/// `offsets` are where each bag's indices begin: bag `i` has `indices[offsets[i]..offsets[i + 1]]`, the last bag the
/// rest, unless there is [one more offset](BagOptions::include_last_offset). The result has `dimension` elements for
/// each bag. An empty bag gives zeros, no bags give nothing.
///
/// Quantized rows are added up in f32 in the order of the indices, each element as `fma(q, scale, sum + bias)`, scale
/// and bias times the row's weight first: the same on every CPU. With a [`padding_idx`](BagOptions::padding_idx) rows
/// in fp32 with weights are multiplied and added in two roundings, as PyTorch does there and only there.
///
/// ```
/// use fbgemm::{BagOptions, EmbeddingFormat};
/// let table = fbgemm::pack_embedding(&[0.5, -1.0, 0.25, 2.0, 7.0, 8.0], 3, 2, EmbeddingFormat::Int8)?;
/// let (indices, offsets) = ([0i64, 1, 2], [0i64, 2, 2]); // rows 0 and 1, none, row 2
/// let sums = fbgemm::embedding_bag(&table, &indices, &offsets, BagOptions::new())?;
/// assert_eq!(sums, [0.75, 1.0, 0.0, 0.0, 7.0, 8.0]);
/// let means = fbgemm::embedding_bag(&table, &indices, &[0, 2, 2, 3], BagOptions::new().mean().include_last_offset())?;
/// assert_eq!(means, [0.375, 0.5, 0.0, 0.0, 7.0, 8.0]);
/// let weighted = BagOptions::new().per_sample_weights(&[2.0, 0.0, -1.0]);
/// assert_eq!(fbgemm::embedding_bag(&table, &indices, &offsets, weighted)?, [1.0, -2.0, 0.0, 0.0, -7.0, -8.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::IndexOutOfRange`] with the first index that is no row's; [`Error::InvalidOffset`] with the first offset
/// that is not 0 at first, descends, is beyond the indices, or, being the one more at the end, not their number;
/// [`Error::InvalidPadding`];
/// [`Error::ZeroDimension`] where that one is missing; [`Error::WrongLength`] for weights that are not as many as the
/// indices, and for indices without a bag; [`Error::WeightedMean`]; [`Error::BagTooLong`] from 2³¹ indices in a bag,
/// and from 65,520 for means in fp16, whose number of rows that type does not hold (PyTorch divides by infinity);
/// [`Error::InvalidRow`] with the first row used of a stored table whose scale or bias is not finite;
/// [`Error::OutOfMemory`]; and those of [`cpu_support`](crate::cpu_support).
pub fn embedding_bag<I: EmbeddingIndex, O: EmbeddingIndex>(
    table: &EmbeddingTable,
    indices: &[I],
    offsets: &[O],
    options: BagOptions,
) -> Result<Vec<f32>> {
    let mut output = new_output(table, Bags::new(indices.len(), offsets, options)?.len())?;
    embedding_bag_into(table, indices, offsets, options, &mut output)?;
    Ok(output)
}

/// [`embedding_bag`] into the caller's buffer, which has `dimension` elements for each bag. Nothing is allocated, but
/// by the first call with a table and these types, with and without weights, which generates FBGEMM's kernel.
///
/// # Errors
/// As [`embedding_bag`], and [`Error::WrongLength`] for the output. On an error with an index or row the output's
/// content is not defined.
pub fn embedding_bag_into<I: EmbeddingIndex, O: EmbeddingIndex, T: EmbeddingOutput>(
    table: &EmbeddingTable,
    indices: &[I],
    offsets: &[O],
    options: BagOptions,
    output: &mut [T],
) -> Result<()> {
    embedding_bag_tasks(table, indices, offsets, options, output, 1, |task| task(0))
}

/// [`embedding_bag_into`] in `tasks` parts on the caller's threads, each with as many bags, the same bits for any number
/// of tasks: see [`QuantizedLinear::forward_tasks`](crate::QuantizedLinear::forward_tasks) for `execute`.
///
/// ```
/// use fbgemm::{BagOptions, EmbeddingFormat};
/// let table = fbgemm::pack_embedding(&[0.5, -1.0, 0.25, 2.0], 2, 2, EmbeddingFormat::Int8)?;
/// let mut output = [0.0; 4];
/// fbgemm::embedding_bag_tasks(&table, &[1, 0, 1], &[0, 2], BagOptions::new(), &mut output, 2, |task| {
///     std::thread::scope(|threads| {
///         threads.spawn(|| task(1));
///         task(0);
///     })
/// })?;
/// assert_eq!(output, [0.75, 1.0, 0.25, 2.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`embedding_bag_into`]; [`Error::InvalidTasks`] unless `tasks` is 1 to 1024; [`Error::TasksLeft`] if `execute`
/// returned before every task had run, the output then being incomplete.
#[allow(clippy::too_many_arguments)]
pub fn embedding_bag_tasks<I: EmbeddingIndex, O: EmbeddingIndex, T: EmbeddingOutput>(
    table: &EmbeddingTable,
    indices: &[I],
    offsets: &[O],
    options: BagOptions,
    output: &mut [T],
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
) -> Result<()> {
    let bags = Bags::new(indices.len(), offsets, options)?;
    check_output(table, bags.len(), output.len())?;
    bags.check_lengths::<T>(options.mean)?;
    let padding = match options.padding_idx {
        Some(given) if given >= table.rows() => return Err(Error::InvalidPadding { given, rows: table.rows() }),
        padding => padding.map(|row| row as i64),
    };
    let (kernels, rows) = (table.kernels(), table.place());
    let look_up = |part: Range<usize>, output: &mut [T]| {
        if let Some(padding) = padding {
            return bags.look_up_unpadded(table, indices, part, options, padding, output);
        }
        if !bags.look_up(kernels, &rows, indices, part.clone(), options.per_sample_weights, output)? {
            return Ok(false);
        }
        if options.mean {
            for (bag, output) in part.zip(output.chunks_exact_mut(table.dimension())) {
                T::divide(output, bags.range(bag).len().max(1));
            }
        }
        Ok(true)
    };
    run(table, bags.len(), indices, padding, output, tasks, execute, look_up)
}

/// The bags that offsets, checked, make of indices.
struct Bags<'a, O> {
    /// Where each begins, and, where it `closes`, the last ends.
    offsets: &'a [O],
    closes: bool,
    /// The number of indices.
    count: usize,
}

impl<'a, O: EmbeddingIndex> Bags<'a, O> {
    fn new(count: usize, offsets: &'a [O], options: BagOptions) -> Result<Self> {
        let closes = options.include_last_offset;
        if closes && offsets.is_empty() {
            return Err(Error::ZeroDimension { what: "the number of offsets with a last one" });
        }
        if offsets.is_empty() && count > 0 {
            return Err(Error::WrongLength { what: "indices without a bag", given: count, expected: 0 });
        }
        if let Some(weights) = options.per_sample_weights {
            if options.mean {
                return Err(Error::WeightedMean);
            }
            if weights.len() != count {
                return Err(Error::WrongLength { what: "per_sample_weights", given: weights.len(), expected: count });
            }
        }
        let (first, last) = (offsets.first().map_or(0, |&o| o.into()), offsets.last().map_or(0, |&o| o.into()));
        let end = count as i64;
        let ends = if closes { last == end } else { last <= end };
        if first != 0 || !ends || !O::ascend(offsets) {
            return Err(wrong_offset(end, offsets, closes));
        }
        Ok(Self { offsets, closes, count })
    }

    fn len(&self) -> usize {
        self.offsets.len() - usize::from(self.closes)
    }

    /// Where a bag's indices are.
    fn range(&self, bag: usize) -> Range<usize> {
        // At most the number of indices, and not negative, as `new` has checked.
        let end = self.offsets.get(bag + 1).map_or(self.count, |&offset| offset.into() as usize);
        self.offsets[bag].into() as usize..end
    }

    /// Checks that no bag is longer than FBGEMM counts, and no mean in fp16 of more rows than that type holds.
    fn check_lengths<T: EmbeddingOutput>(&self, mean: bool) -> Result<()> {
        // The first number that rounds to infinity in fp16.
        let limit = if mean && T::HALF { 65_520 - 1 } else { i32::MAX as usize };
        if self.count > limit {
            for bag in 0..self.len() {
                let given = self.range(bag).len();
                if given > limit {
                    return Err(Error::BagTooLong { bag, given, limit });
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn look_up<I: EmbeddingIndex, T: EmbeddingOutput>(
        &self,
        kernels: &Kernels,
        table: &Table,
        indices: &[I],
        bags: Range<usize>,
        weights: Option<&[f32]>,
        output: &mut [T],
    ) -> Result<bool> {
        let width = kernels.dimension();
        // A kernel wants the end of its last bag, too.
        let whole = if self.closes { bags.end } else { bags.end.min(self.len() - 1) };
        let (output, last) = output.split_at_mut((whole - bags.start) * width);
        if whole > bags.start {
            let part = self.range(bags.start).start..self.range(whole - 1).end;
            let offsets = &self.offsets[bags.start..=whole];
            let weights = weights.map(|weights| &weights[part.clone()]);
            if !kernels.bags(table, &indices[part], offsets, weights, output)? {
                return Ok(false);
            }
        }
        if last.is_empty() {
            return Ok(true);
        }
        let part = self.range(whole);
        let offsets = [0, part.len() as i64];
        kernels.bags(table, &indices[part.clone()], &offsets, weights.map(|weights| &weights[part]), last)
    }

    /// Sums or means of the indices that are not the padding, which are copied to the thread's buffer: some bags at a
    /// time, and a longer one by itself.
    fn look_up_unpadded<I: EmbeddingIndex, T: EmbeddingOutput>(
        &self,
        table: &EmbeddingTable,
        indices: &[I],
        bags: Range<usize>,
        options: BagOptions,
        padding: i64,
        output: &mut [T],
    ) -> Result<bool> {
        /// About as many as fit the first cache.
        const AT_ONCE: usize = 2048;
        let width = table.dimension();
        let two_roundings = options.per_sample_weights.filter(|_| table.format() == EmbeddingFormat::Fp32 && !T::HALF);
        let mut first = bags.start;
        while first < bags.end {
            let start = self.range(first).start;
            let mut next = first + 1;
            while next < bags.end && next - first < AT_ONCE && self.range(next).end - start <= AT_ONCE {
                next += 1;
            }
            let (count, number) = (self.range(next - 1).end - start, next - first);
            let output = &mut output[(first - bags.start) * width..(next - bags.start) * width];
            let factors = options.per_sample_weights.map_or(0, |_| count);
            let found = with_index_buffer(count + number + 1, |buffer| {
                with_conversion_buffer(factors, |factors| {
                    let (kept, offsets) = buffer.split_at_mut(count);
                    let mut len = 0;
                    offsets[0] = 0;
                    for (bag, offset) in (first..next).zip(&mut offsets[1..]) {
                        for place in self.range(bag) {
                            let index = indices[place].into();
                            if index == padding {
                                continue;
                            }
                            kept[len] = index;
                            if let Some(weights) = options.per_sample_weights {
                                factors[len] = weights[place];
                            }
                            len += 1;
                        }
                        *offset = len as i64;
                    }
                    let (kept, factors) = (&kept[..len], &factors[..len.min(factors.len())]);
                    let ranges = offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
                    if let (Some(_), Some(output)) = (two_roundings, T::as_f32_mut(output)) {
                        let mut sums = output.chunks_exact_mut(width).zip(ranges);
                        return Ok(sums.all(|(sum, bag)| add_up(table, &kept[bag.clone()], &factors[bag], sum)));
                    }
                    let factors = options.per_sample_weights.map(|_| factors);
                    if !table.kernels().bags(&table.place(), kept, offsets, factors, output)? {
                        return Ok(false);
                    }
                    if options.mean {
                        output
                            .chunks_exact_mut(width)
                            .zip(ranges)
                            .for_each(|(sum, bag)| T::divide(sum, bag.len().max(1)));
                    }
                    Ok(true)
                })
            })?;
            if !found {
                return Ok(false);
            }
            first = next;
        }
        Ok(true)
    }
}

/// One bag's sum of rows in fp32, each value times its row's weight rounded before it is added: what PyTorch computes
/// where there is a padding. False where an index is no row's.
fn add_up(table: &EmbeddingTable, indices: &[i64], weights: &[f32], sum: &mut [f32]) -> bool {
    sum.fill(0.0);
    let width = size_of_val(sum);
    for (&index, weight) in indices.iter().zip(weights) {
        let Some(row) = usize::try_from(index).ok().filter(|&row| row < table.rows()) else { return false };
        let row = &table.place().memory[row * width..][..width];
        sum.iter_mut().zip(row.as_chunks().0).for_each(|(sum, value)| *sum += f32::from_le_bytes(*value) * weight);
    }
    true
}

/// Which offset is wrong, the indices ending at `end`.
fn wrong_offset<O: EmbeddingIndex>(end: i64, offsets: &[O], closes: bool) -> Error {
    let mut low = 0;
    for (position, &given) in offsets.iter().enumerate() {
        let given = given.into();
        let high = if position == 0 { 0 } else { end };
        let last = closes && position + 1 == offsets.len();
        if given < low || given > high || last && given != end {
            return Error::InvalidOffset {
                position,
                given,
                low: if last { end } else { low },
                high: if last { end } else { high },
            };
        }
        low = given;
    }
    unreachable!("a wrong offset was seen")
}

/// Runs `look_up` for parts of the output's `rows`, and finds what is wrong where something is. Rows of the padding are
/// not used.
#[allow(clippy::too_many_arguments)]
fn run<I: EmbeddingIndex, T: EmbeddingOutput>(
    table: &EmbeddingTable,
    rows: usize,
    indices: &[I],
    padding: Option<i64>,
    output: &mut [T],
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    look_up: impl Fn(Range<usize>, &mut [T]) -> Result<bool> + Sync,
) -> Result<()> {
    let width = table.dimension();
    let (refused, suspicious) = (AtomicBool::new(false), AtomicBool::new(false));
    let work = |part: Range<usize>, output: &mut [T]| {
        if !look_up(part, output)? {
            refused.store(true, Ordering::Relaxed);
        }
        // A scale or bias that is not finite makes every element of its sum so: the first one of each tells.
        if table.checks_rows() && !T::are_finite(output, width) {
            suspicious.store(true, Ordering::Relaxed);
        }
        Ok(())
    };
    match tasks {
        1 if rows == 0 => {}
        1 => work(0..rows, output)?, // without what splitting costs: small calls take no longer than that
        _ => tasks::by_rows(output, width, 1, tasks, execute, work)?,
    }
    if refused.into_inner() {
        let rows = table.rows();
        for (position, &index) in indices.iter().enumerate() {
            let index = index.into();
            if usize::try_from(index).map_or(true, |index| index >= rows) {
                return Err(Error::IndexOutOfRange { index, position, rows });
            }
        }
        let message = "the look-up kernel refused its arguments".to_string();
        return Err(Error::Fbgemm { operation: "GenerateEmbeddingSpMDM", message });
    }
    if suspicious.into_inner() {
        // Where no row is at fault it is a weight, or a sum beyond the type: PyTorch's answer.
        let mut used = indices.iter().map(|&index| index.into()).filter(|&index| Some(index) != padding);
        used.try_for_each(|index| table.check_row(index as usize))?;
    }
    Ok(())
}

/// An output for so many rows.
fn new_output(table: &EmbeddingTable, rows: usize) -> Result<Vec<f32>> {
    zeroed(rows.checked_mul(table.dimension()).ok_or(Error::OutOfMemory { bytes: usize::MAX })?)
}

fn check_output(table: &EmbeddingTable, rows: usize, given: usize) -> Result<()> {
    let (columns, limit) = (table.dimension(), i32::MAX as usize);
    if rows > limit {
        return Err(Error::TooLarge { what: "output", rows, columns, limit });
    }
    let expected = rows * columns;
    if given == expected { Ok(()) } else { Err(Error::WrongLength { what: "output", given, expected }) }
}
