//! FBGEMM's products with weights in fp16: `PackedGemmMatrixFP16` and `cblas_gemm_compute`.

use super::tasks::{self, SharedOutput};
use super::types::failed;
use super::{check_fp16_shape, dimension};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::isa::Isa;

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: the functions declared safe only read what their arguments own; those that pack, unpack or compute, which
    // rely on more, are unsafe.
    unsafe extern "C++" {
        include!("fbgemm/include/fp16.h");

        type PackedWeightFp16;

        /// Unsafe: `weight` must have n × k elements, n × k, padded to whole blocks, must fit in 31 bits, and the CPU
        /// must have AVX2.
        unsafe fn pack_fp16(weight: &[f32], n: i32, k: i32) -> Result<UniquePtr<PackedWeightFp16>>;
        /// Unsafe: `to` must have n × k elements.
        unsafe fn unpack_fp16(packed: &PackedWeightFp16, to: &mut [f32]) -> Result<()>;
        fn packed_bytes_fp16(packed: &PackedWeightFp16) -> usize;
        fn live_packed_weights_fp16() -> usize;
        /// Unsafe: see the header.
        unsafe fn linear_fp16(
            input: &[f32],
            m: i32,
            weight: &PackedWeightFp16,
            output: *mut f32,
            task: i32,
            tasks: i32,
        ) -> Result<()>;
        #[allow(dead_code)] // only a test asks for it
        fn use_read_only_fp16(n: i32, k: i32) -> Result<()>;
    }
}

/// The rows that FBGEMM computes at a time: split between them, an input gives the same bits as whole.
pub(crate) const BLOCK_ROWS: usize = 120;

/// A weight matrix rounded to fp16 and packed for the instruction set that FBGEMM used when it was made. Dropping it
/// frees the memory.
pub(crate) struct PackedFp16 {
    handle: cxx::UniquePtr<bridge::PackedWeightFp16>,
    out_features: usize,
    in_features: usize,
    isa: Isa,
}

// SAFETY: the C++ object owns its memory, which it maps and unmaps itself, and has no link to the thread that made it.
unsafe impl Send for PackedFp16 {}
// SAFETY: after its constructor nothing writes to the C++ object or its memory: it is only given out const, and
// FBGEMM's `cblas_gemm_compute` reads it, its scratchpad being each thread's own. The test
// `nothing_writes_to_a_packed_matrix` has the object and its memory on pages without write access meanwhile.
unsafe impl Sync for PackedFp16 {}

impl PackedFp16 {
    /// Packs `weight`, `out_features` rows of `in_features`, all finite.
    ///
    /// # Errors
    /// Those of [`check_fp16_shape`]; [`Error::Fbgemm`] where memory runs out.
    pub(crate) fn new(weight: &[f32], out_features: usize, in_features: usize, cpu: SupportedCpu) -> Result<Self> {
        check_fp16_shape("weight", weight.len(), out_features, in_features)?;
        let (n, k) = (dimension(out_features), dimension(in_features));
        // SAFETY: `weight` has n × k elements and the padded matrix fits FBGEMM's 32-bit addressing, both checked just
        // above; a `SupportedCpu` is proof of AVX2.
        let handle = unsafe { bridge::pack_fp16(weight, n, k) }.map_err(failed("PackedGemmMatrixFP16"))?;
        Ok(Self { handle, out_features, in_features, isa: cpu.isa() })
    }

    pub(crate) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(crate) fn in_features(&self) -> usize {
        self.in_features
    }

    /// The instruction set that it was packed for.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn bytes(&self) -> usize {
        bridge::packed_bytes_fp16(&self.handle)
    }

    /// How many are alive in this process.
    pub(crate) fn live() -> usize {
        bridge::live_packed_weights_fp16()
    }

    /// The weight again as it was rounded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn unpack(&self) -> Result<Vec<f32>> {
        let mut weight = super::scratch::zeroed(self.out_features * self.in_features)?;
        // SAFETY: `weight` has n × k elements.
        unsafe { bridge::unpack_fp16(&self.handle, &mut weight) }.map_err(failed("PackedGemmMatrixFP16"))?;
        Ok(weight)
    }

    /// `output` = `input` · weightᵀ, in `tasks` parts by FBGEMM's own partition: see [`tasks::run`] for `execute`.
    ///
    /// # Errors
    /// [`Error::InstructionSetChanged`], those of [`tasks::run`], [`Error::Fbgemm`].
    ///
    /// # Panics
    /// If a length does not fit the packed matrix.
    pub(crate) fn linear(
        &self,
        input: &[f32],
        output: &mut [f32],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
        cpu: SupportedCpu,
    ) -> Result<()> {
        if cpu.isa() != self.isa {
            return Err(Error::InstructionSetChanged { packed: self.isa, now: cpu.isa() });
        }
        let rows = input.len() / self.in_features;
        assert!(input.len() == rows * self.in_features && output.len() == rows * self.out_features);
        dimension(input.len().max(output.len()));
        // FBGEMM steps beyond the last row by its own block, which must not leave 31 bits.
        const ROWS: usize = BLOCK_ROWS << 20;
        let output = SharedOutput::new(output);
        tasks::run(tasks, execute, |task| {
            for (i, input) in input.chunks(ROWS * self.in_features).enumerate() {
                let rows = dimension(input.len() / self.in_features);
                // SAFETY: this part of the input has rows × k elements, the output as many rows of n behind its start,
                // and FBGEMM uses the instruction set that the weight is packed for, all checked above. `tasks::run`
                // gives this number to no other task, and FBGEMM writes disjoint columns for different numbers.
                unsafe {
                    let output = output.start().add(i * ROWS * self.out_features);
                    bridge::linear_fp16(input, rows, &self.handle, output, task as i32, tasks as i32)
                }
                .map_err(failed("cblas_gemm_compute"))?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_writes_to_a_packed_matrix() {
        crate::ffi::alone("ffi::fp16::tests::using_a_read_only_matrix", "");
    }

    #[test]
    #[ignore = "a write ends its process"]
    fn using_a_read_only_matrix() {
        SupportedCpu::get().unwrap();
        for (n, k) in [(1, 1), (50, 600), (384, 384), (7, 513)] {
            bridge::use_read_only_fp16(n, k).unwrap();
        }
    }
}
