//! FBGEMM's embedding tables: rows to fp16, 8, 4 and 2 bits and back, and its generated look-up kernels.

use super::rows::sealed::{Float, Integer};
use super::rows::{Table, row_bytes, scale_bytes};
use super::scratch::zeroed;
use super::types::failed;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use std::sync::OnceLock;

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: all of it relies on more than its arguments' types say, so all of it is unsafe.
    unsafe extern "C++" {
        include!("fbgemm/include/embedding.h");

        type EmbeddingKernel;

        /// Unsafe: `bits` must be one of [`BITS`](super::rows::BITS), the dimension as [`row_bytes`] wants it, and the CPU
        /// must have AVX2.
        unsafe fn generate_embedding_kernel(
            bits: i32,
            dimension: i64,
            wide_indices: bool,
            wide_offsets: bool,
            half_output: bool,
            weighted: bool,
            lengths: bool,
        ) -> Result<UniquePtr<EmbeddingKernel>>;
        /// Unsafe: the table must have `rows` rows, `indices` and `weights`, where the kernel reads them, `count`
        /// elements, `offsets` as many as the kernel reads for `bags` bags, `output` `bags` rows; all of the kernel's
        /// types.
        #[allow(clippy::too_many_arguments)]
        unsafe fn look_up_embedding(
            kernel: &EmbeddingKernel,
            bags: i64,
            count: i64,
            rows: i64,
            table: *const u8,
            indices: *const u8,
            offsets: *const u8,
            weights: *const f32,
            output: *mut u8,
        ) -> Result<bool>;
        /// Unsafe: `from` must have `rows` rows of `dimension` floats, `to` as many of [`row_bytes`]; the bits,
        /// the dimension and the CPU as for a kernel, but for 32 bits.
        unsafe fn pack_embedding_rows(
            bits: i32,
            rows: usize,
            dimension: i32,
            from: *const f32,
            to: *mut u8,
        ) -> Result<()>;
        /// Unsafe: as `pack_embedding_rows` the other way round; as many bytes as
        /// [`unpacking_reads_beyond`] says must be there behind the rows.
        unsafe fn unpack_embedding_rows(
            bits: i32,
            rows: usize,
            dimension: i32,
            row_bytes: i32,
            from: *const u8,
            to: *mut f32,
        ) -> Result<()>;
        /// Unsafe: the memory must be there.
        unsafe fn wish_for_huge_pages(start: *mut u8, bytes: usize);
    }
}

/// So many zeros for a table. Where they fill huge pages they ask for them before they are touched: looking up rows of
/// large tables at random takes 0.3 to 0.8 of the time then (benches/embedding.rs).
///
/// # Errors
/// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory).
pub(crate) fn memory_for(bytes: usize) -> Result<Vec<u8>> {
    const HUGE: usize = 2 << 20;
    let mut memory = zeroed(bytes)?;
    if bytes >= 2 * HUGE {
        // SAFETY: the vector's own memory; a wish changes nothing that it holds.
        unsafe { bridge::wish_for_huge_pages(memory.as_mut_ptr(), memory.len()) };
    }
    Ok(memory)
}

/// How many bytes behind a table are enough for whatever FBGEMM reads beyond its last row.
pub(crate) const SLACK: usize = 16;

/// How far beyond a row FBGEMM reads when it unpacks: of 2 bits, 16 bytes are loaded for what can be 1 and the row's 4 of
/// scale and bias.
fn unpacking_reads_beyond(bits: u32) -> usize {
    if bits == 2 { 16 - 5 } else { 0 }
}

/// How far beyond a row FBGEMM's look-up kernels read. They load the elements of four registers at once, only those
/// that are there where there are fewer registers; but where the fourth is not full they load all the same, and scale
/// and bias behind the elements don't always cover that: of 4 bits in AVX-512 it is up to 3 bytes.
fn looking_up_reads_beyond(bits: u32, dimension: usize) -> usize {
    if !matches!(bits, 4 | 2) {
        return 0;
    }
    let beyond = [8, 16].map(|lanes| {
        let (at_once, last) = (4 * lanes, dimension % (4 * lanes));
        let there = (last * bits as usize).div_ceil(8) + scale_bytes(bits);
        if last > 3 * lanes { (at_once * bits as usize / 8).saturating_sub(there) } else { 0 }
    });
    beyond[0].max(beyond[1])
}

/// Whole rows as FBGEMM packs them, all finite: to fp16, or quantized to 8, 4 or 2 bits.
///
/// # Errors
/// [`Error::Fbgemm`].
///
/// # Panics
/// If the lengths are not those of the same number of rows, or as [`row_bytes`].
pub(crate) fn pack(bits: u32, dimension: usize, from: &[f32], to: &mut [u8], _: SupportedCpu) -> Result<()> {
    let rows = from.len() / dimension;
    assert!(bits != 32 && from.len() == rows * dimension && to.len() == rows * row_bytes(bits, dimension));
    // SAFETY: the buffers have whole rows, as many of each, of bits and a dimension that there are, checked just above
    // and by `row_bytes`; a `SupportedCpu` is proof of AVX2.
    unsafe { bridge::pack_embedding_rows(bits as i32, rows, dimension as i32, from.as_ptr(), to.as_mut_ptr()) }
        .map_err(failed("FloatOrHalfToFusedRowwiseQuantized"))
}

/// The inverse of [`pack`]: the first rows of `memory`, which can have any bytes, as many as `to` takes.
///
/// # Errors
/// [`Error::Fbgemm`].
///
/// # Panics
/// If `to` has no whole rows, or `memory` fewer; and as [`row_bytes`].
pub(crate) fn unpack(bits: u32, dimension: usize, memory: &[u8], to: &mut [f32], _: SupportedCpu) -> Result<()> {
    let width = row_bytes(bits, dimension);
    let rows = to.len() / dimension;
    assert!(bits != 32 && to.len() == rows * dimension && memory.len() >= rows * width);
    let run = |rows: usize, from: &[u8], to: &mut [f32]| {
        assert!(from.len() >= rows * width + unpacking_reads_beyond(bits) && to.len() == rows * dimension);
        let (bits, dimension, width) = (bits as i32, dimension as i32, width as i32);
        // SAFETY: the buffers have so many rows, and the first one as many bytes beyond as FBGEMM reads, checked just
        // above, of bits and a dimension that there are, checked by `row_bytes`; a `SupportedCpu` is proof of AVX2.
        unsafe { bridge::unpack_embedding_rows(bits, rows, dimension, width, from.as_ptr(), to.as_mut_ptr()) }
            .map_err(failed("FusedRowwiseQuantizedToFloat"))
    };
    // The last rows are unpacked from a copy where there is too little behind them.
    let missing = (rows * width + unpacking_reads_beyond(bits)).saturating_sub(memory.len());
    let whole = rows - missing.div_ceil(width).min(rows);
    let (to, to_last) = to.split_at_mut(whole * dimension);
    if whole > 0 {
        run(whole, memory, to)?;
    }
    if whole < rows {
        let last = &memory[whole * width..rows * width];
        let mut copy = zeroed(last.len() + SLACK)?;
        copy[..last.len()].copy_from_slice(last);
        run(rows - whole, &copy, to_last)?;
    }
    Ok(())
}

/// The kernels of one kind of table, each generated when it is first called, and kept.
pub(crate) struct Kernels {
    bits: u32,
    dimension: usize,
    row_bytes: usize,
    /// See [`looking_up_reads_beyond`].
    reads_beyond: usize,
    /// By the bits of their number: wide indices, wide offsets, fp16 output, weighted.
    bags: [OnceLock<Kernel>; 16],
    /// By the bits of their number: wide indices, fp16 output.
    rows: [OnceLock<Kernel>; 4],
}

/// One of them: there is none without a [`SupportedCpu`].
struct Kernel(cxx::UniquePtr<bridge::EmbeddingKernel>);

// SAFETY: the C++ object owns a `std::function` with a pointer to generated code, which FBGEMM never frees, and plain
// numbers: nothing of the thread that made it.
unsafe impl Send for Kernel {}
// SAFETY: the object is only given out const, and its one method calls the function, whose code keeps all it changes
// in registers and on the stack.
unsafe impl Sync for Kernel {}

/// For rows one by one: the lengths of as many bags of one.
const ONES: [i32; 4096] = [1; 4096];

impl Kernels {
    /// # Panics
    /// As [`row_bytes`].
    pub(crate) fn new(bits: u32, dimension: usize) -> Self {
        let (bags, rows) = ([const { OnceLock::new() }; 16], [const { OnceLock::new() }; 4]);
        let (row_bytes, reads_beyond) = (row_bytes(bits, dimension), looking_up_reads_beyond(bits, dimension));
        Self { bits, dimension, row_bytes, reads_beyond, bags, rows }
    }

    /// The number of elements of a row.
    #[inline]
    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    /// output[bag] = the sum of the rows of indices[offsets[bag]..offsets[bag + 1]], each times its weight, if there
    /// are any. False where an index is not below the table's rows, the offsets descend or the last one less the first
    /// is not the number of indices: the output is then in part as it was.
    ///
    /// The table is the first rows of its memory. A bag with the last of them is looked up in a copy of its rows where
    /// FBGEMM reads beyond a row and there are fewer bytes behind it.
    ///
    /// # Errors
    /// Those of [`SupportedCpu::get`]; [`Error::Fbgemm`].
    ///
    /// # Panics
    /// If the memory has not so many rows, the output not as many as there are bags, one less than there are offsets, or
    /// there are not as many weights as indices.
    pub(crate) fn bags<I: Integer, O: Integer, T: Float>(
        &self,
        table: &Table,
        indices: &[I],
        offsets: &[O],
        weights: Option<&[f32]>,
        output: &mut [T],
    ) -> Result<bool> {
        let bags = offsets.len() - 1;
        assert!(weights.is_none_or(|weights| weights.len() == indices.len()));
        let slot = usize::from(I::WIDE)
            | usize::from(O::WIDE) << 1
            | usize::from(T::HALF) << 2
            | usize::from(weights.is_some()) << 3;
        let kernel = self.kernel::<I, O, T>(&self.bags[slot], weights.is_some(), false)?;
        let factors = weights.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let rows = self.rows_in_place(table);
        // SAFETY: there is one offset more than bags, and as many weights as indices, checked just above; the kernel is
        // for these types.
        let all = unsafe { self.look_up(kernel, table.memory, rows, bags, indices, offsets, factors, output) }?;
        if all || rows == table.rows {
            return Ok(all);
        }
        for (pair, output) in offsets.windows(2).zip(output.chunks_mut(self.dimension)) {
            let first = offsets[0].into();
            let [start, end] = [pair[0], pair[1]].map(|o| usize::try_from(o.into() - first).unwrap_or(usize::MAX));
            let Some(indices) = indices.get(start..end) else { return Ok(false) };
            if !self.bag_in_a_copy(table, indices, weights.map(|weights| &weights[start..end]), output)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// output[i] = the row indices[i]. False where an index is not below the table's rows. See [`bags`](Self::bags) for
    /// the last row.
    ///
    /// # Errors
    /// As [`bags`](Self::bags).
    ///
    /// # Panics
    /// If the memory has not so many rows, or the output not as many as there are indices.
    pub(crate) fn rows<I: Integer, T: Float>(&self, table: &Table, indices: &[I], output: &mut [T]) -> Result<bool> {
        assert!(output.len() == indices.len() * self.dimension);
        let slot = usize::from(I::WIDE) | usize::from(T::HALF) << 1;
        let kernel = self.kernel::<I, i32, T>(&self.rows[slot], false, true)?;
        let rows = self.rows_in_place(table);
        for (indices, output) in indices.chunks(ONES.len()).zip(output.chunks_mut(ONES.len() * self.dimension)) {
            let lengths = &ONES[..indices.len()];
            // SAFETY: there is a length for each of the indices, of which there are as many as rows of output; the
            // kernel is for these types, for lengths and without weights.
            let all = unsafe {
                self.look_up(kernel, table.memory, rows, lengths.len(), indices, lengths, std::ptr::null(), output)?
            };
            if all {
                continue;
            }
            for (index, output) in indices.chunks(1).zip(output.chunks_mut(self.dimension)) {
                if rows == table.rows || !self.bag_in_a_copy(table, index, None, output)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// How many rows FBGEMM can look up where they are.
    #[inline]
    fn rows_in_place(&self, table: &Table) -> usize {
        let behind = table.memory.len().checked_sub(table.rows * self.row_bytes);
        let behind = behind.expect("the memory has as many rows as are told of");
        let last = behind < self.reads_beyond;
        table.rows - usize::from(last).min(table.rows)
    }

    /// A single bag, its rows copied one behind the other. False where an index is not below the table's rows.
    fn bag_in_a_copy<I: Integer, T: Float>(
        &self,
        table: &Table,
        indices: &[I],
        weights: Option<&[f32]>,
        output: &mut [T],
    ) -> Result<bool> {
        let bytes = indices.len().checked_mul(self.row_bytes).and_then(|bytes| bytes.checked_add(SLACK));
        let mut rows = zeroed(bytes.ok_or(Error::OutOfMemory { bytes: usize::MAX })?)?;
        for (&index, to) in indices.iter().zip(rows.chunks_exact_mut(self.row_bytes)) {
            match usize::try_from(index.into()) {
                Ok(row) if row < table.rows => {
                    to.copy_from_slice(&table.memory[row * self.row_bytes..][..self.row_bytes]);
                }
                _ => return Ok(false),
            }
        }
        let copied = Table { memory: &rows, rows: indices.len() };
        let mut places = zeroed(indices.len())?;
        (0..).zip(&mut places).for_each(|(i, place)| *place = i);
        self.bags(&copied, &places, &[0, indices.len() as i64], weights, output)
    }

    /// # Safety
    /// The kernel is for these types; offsets and weights have as many elements as it reads for so many bags and
    /// indices.
    #[allow(clippy::too_many_arguments)]
    unsafe fn look_up<I: Integer, O: Integer, T: Float>(
        &self,
        kernel: &Kernel,
        memory: &[u8],
        rows: usize,
        bags: usize,
        indices: &[I],
        offsets: &[O],
        weights: *const f32,
        output: &mut [T],
    ) -> Result<bool> {
        let beyond = if rows == 0 { 0 } else { self.reads_beyond };
        assert!(memory.len() >= rows * self.row_bytes + beyond && output.len() == bags * self.dimension);
        // FBGEMM compares indices of 32 bits without their sign: it is told of no more rows than they have.
        let rows = if I::WIDE { rows } else { rows.min(1 << 31) };
        // SAFETY: the memory has so many rows and what FBGEMM reads beyond the last, and the output so many bags, both
        // checked just above; the caller vouches for the rest. The kernels read no row but of indices below the number
        // of rows, and no index or weight beyond their number, whatever the offsets: they stop with false instead.
        unsafe {
            bridge::look_up_embedding(
                &kernel.0,
                bags as i64,
                indices.len() as i64,
                rows as i64,
                memory.as_ptr(),
                indices.as_ptr().cast(),
                offsets.as_ptr().cast(),
                weights,
                output.as_mut_ptr().cast(),
            )
        }
        .map_err(failed("GenerateEmbeddingSpMDM"))
    }

    fn kernel<'a, I: Integer, O: Integer, T: Float>(
        &self,
        slot: &'a OnceLock<Kernel>,
        weighted: bool,
        lengths: bool,
    ) -> Result<&'a Kernel> {
        if let Some(kernel) = slot.get() {
            return Ok(kernel);
        }
        let _cpu = SupportedCpu::get()?;
        let (bits, dimension) = (self.bits as i32, self.dimension as i64);
        // SAFETY: `new` has checked the bits and the dimension; a `SupportedCpu` is proof of AVX2.
        let kernel =
            unsafe { bridge::generate_embedding_kernel(bits, dimension, I::WIDE, O::WIDE, T::HALF, weighted, lengths) };
        let kernel = Kernel(kernel.map_err(failed("GenerateEmbeddingSpMDM"))?);
        // Where two threads come at once one of the two is dropped: FBGEMM has generated the code once.
        Ok(slot.get_or_init(|| kernel))
    }
}
