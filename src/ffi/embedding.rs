//! FBGEMM's embedding tables: rows to fp16, 8, 4 and 2 bits and back, and its generated look-up kernels.

use super::rows::row_bytes;
use super::rows::sealed::{Float, Integer};
use super::types::failed;
use crate::cpu::SupportedCpu;
use crate::error::Result;
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
        /// Unsafe: as `pack_embedding_rows` the other way round; for 2 bits [`READ_BEYOND`] bytes after the
        /// rows must be there, too.
        unsafe fn unpack_embedding_rows(
            bits: i32,
            rows: usize,
            dimension: i32,
            row_bytes: i32,
            from: *const u8,
            to: *mut f32,
        ) -> Result<()>;
    }
}

/// How far beyond a row of 2 bits FBGEMM reads when it unpacks: 16 bytes are loaded for what can be 1 and the row's 4
/// of scale and bias.
const READ_BEYOND: usize = 11;

/// Whole rows as FBGEMM packs them, all finite: to fp16, or quantized to 8, 4 or 2 bits.
///
/// # Errors
/// [`Error::Fbgemm`](crate::error::Error::Fbgemm).
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

/// The inverse of [`pack`], of rows that can have any bytes.
///
/// # Errors
/// [`Error::Fbgemm`](crate::error::Error::Fbgemm).
///
/// # Panics
/// As [`pack`].
pub(crate) fn unpack(bits: u32, dimension: usize, from: &[u8], to: &mut [f32], _: SupportedCpu) -> Result<()> {
    let width = row_bytes(bits, dimension);
    let rows = from.len() / width;
    assert!(bits != 32 && from.len() == rows * width && to.len() == rows * dimension);
    // Of 2 bits the last rows are unpacked from a copy, behind which there are bytes to be read.
    let at_the_end = if bits == 2 { READ_BEYOND.div_ceil(width).min(rows) } else { 0 };
    let (whole, last) = from.split_at((rows - at_the_end) * width);
    let (to_whole, to_last) = to.split_at_mut((rows - at_the_end) * dimension);
    let mut copy = Vec::new();
    let run = |from: &[u8], to: &mut [f32]| {
        let rows = from.len() / width;
        // SAFETY: as in `pack`; where 2 bits are unpacked, at least READ_BEYOND bytes follow the rows: the rows at the
        // end, or zeros.
        unsafe {
            bridge::unpack_embedding_rows(
                bits as i32,
                rows,
                dimension as i32,
                width as i32,
                from.as_ptr(),
                to.as_mut_ptr(),
            )
        }
        .map_err(failed("FusedRowwiseQuantizedToFloat"))
    };
    run(whole, to_whole)?;
    if at_the_end > 0 {
        copy.extend_from_slice(last);
        copy.resize(last.len() + READ_BEYOND, 0);
        run(&copy[..last.len()], to_last)?;
    }
    Ok(())
}

/// The kernels of one kind of table, each generated when it is first called, and kept.
pub(crate) struct Kernels {
    bits: u32,
    dimension: usize,
    row_bytes: usize,
    /// By the bits of their number: wide indices, wide offsets, fp16 output, weighted.
    bags: [OnceLock<Kernel>; 16],
    /// By the bits of their number: wide indices, fp16 output.
    rows: [OnceLock<Kernel>; 4],
}

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
        let row_bytes = row_bytes(bits, dimension);
        Self { bits, dimension, row_bytes, bags: [const { OnceLock::new() }; 16], rows: [const { OnceLock::new() }; 4] }
    }

    /// output[bag] = the sum of the rows of indices[offsets[bag]..offsets[bag + 1]], each times its weight, if there
    /// are any. False where an index is not below the table's rows, the offsets descend or the last one less the first
    /// is not the number of indices: the output is then in part as it was.
    ///
    /// # Errors
    /// [`Error::Fbgemm`](crate::error::Error::Fbgemm).
    ///
    /// # Panics
    /// If the table or the output are not whole rows, the offsets not one more than the output's rows, or the weights
    /// not as many as the indices.
    pub(crate) fn bags<I: Integer, O: Integer, T: Float>(
        &self,
        table: &[u8],
        indices: &[I],
        offsets: &[O],
        weights: Option<&[f32]>,
        output: &mut [T],
        cpu: SupportedCpu,
    ) -> Result<bool> {
        let bags = output.len() / self.dimension;
        assert!(offsets.len() == bags + 1 && weights.is_none_or(|weights| weights.len() == indices.len()));
        let slot = usize::from(I::WIDE)
            | usize::from(O::WIDE) << 1
            | usize::from(T::HALF) << 2
            | usize::from(weights.is_some()) << 3;
        let kernel = self.kernel::<I, O, T>(&self.bags[slot], weights.is_some(), false, cpu)?;
        let weights = weights.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: there is one offset more than bags, and as many weights as indices, checked just above; the kernel is
        // for these types.
        unsafe { self.look_up(kernel, table, indices, offsets, weights, output) }
    }

    /// output[i] = the row indices[i]. False where an index is not below the table's rows.
    ///
    /// # Errors
    /// As [`bags`](Self::bags).
    ///
    /// # Panics
    /// If the table is not whole rows, or the output has not as many as there are indices.
    pub(crate) fn rows<I: Integer, T: Float>(
        &self,
        table: &[u8],
        indices: &[I],
        output: &mut [T],
        cpu: SupportedCpu,
    ) -> Result<bool> {
        assert!(output.len() == indices.len() * self.dimension);
        let slot = usize::from(I::WIDE) | usize::from(T::HALF) << 1;
        let kernel = self.kernel::<I, i32, T>(&self.rows[slot], false, true, cpu)?;
        for (indices, output) in indices.chunks(ONES.len()).zip(output.chunks_mut(ONES.len() * self.dimension)) {
            // SAFETY: there is a length for each of the indices, of which there are as many as rows of output; the
            // kernel is for these types, for lengths and without weights.
            let all =
                unsafe { self.look_up(kernel, table, indices, &ONES[..indices.len()], std::ptr::null(), output)? };
            if !all {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// # Safety
    /// The kernel is for these types; offsets and weights have as many elements as it reads for so many bags and
    /// indices.
    unsafe fn look_up<I: Integer, O: Integer, T: Float>(
        &self,
        kernel: &Kernel,
        table: &[u8],
        indices: &[I],
        offsets: &[O],
        weights: *const f32,
        output: &mut [T],
    ) -> Result<bool> {
        let rows = table.len() / self.row_bytes;
        let bags = output.len() / self.dimension;
        assert!(table.len() == rows * self.row_bytes && output.len() == bags * self.dimension);
        // FBGEMM compares indices of 32 bits without their sign: no more rows than that are told of.
        let rows = if I::WIDE { rows } else { rows.min(1 << 31) };
        // SAFETY: the table has so many rows and the output so many bags, checked just above; the caller vouches for
        // the rest. The kernels read no row but of indices below the number of rows, and no index or weight beyond
        // their number, whatever the offsets: they stop with false instead. Where they read more of a row than its
        // elements, it is of its scale and bias.
        unsafe {
            bridge::look_up_embedding(
                &kernel.0,
                bags as i64,
                indices.len() as i64,
                rows as i64,
                table.as_ptr(),
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
        _: SupportedCpu,
    ) -> Result<&'a Kernel> {
        if let Some(kernel) = slot.get() {
            return Ok(kernel);
        }
        let (bits, dimension) = (self.bits as i32, self.dimension as i64);
        // SAFETY: `new` has checked the bits and the dimension; a `SupportedCpu` is proof of AVX2.
        let kernel =
            unsafe { bridge::generate_embedding_kernel(bits, dimension, I::WIDE, O::WIDE, T::HALF, weighted, lengths) };
        let kernel = Kernel(kernel.map_err(failed("GenerateEmbeddingSpMDM"))?);
        // Where two threads come at once one of the two is dropped: FBGEMM has generated the code once.
        Ok(slot.get_or_init(|| kernel))
    }
}
