//! FBGEMM's int8 matrices and products: `PackBMatrix`, `fbgemmPacked` and its output stages.

use super::scratch::with_operation_buffers;
use super::tasks::{self, SharedOutput};
use super::types::{BlockingFactors, failed};
use super::{Params, check_int8_shape, dimension};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::isa::Isa;

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: the functions declared safe only read what their arguments own; those that pack, unpack or compute, which
    // rely on more, are unsafe.
    unsafe extern "C++" {
        include!("fbgemm/include/int8.h");

        #[namespace = "fbgemm"]
        type BlockingFactors = super::BlockingFactors;
        type PackedWeight;

        /// Unsafe: `weight` must have n × k elements, padded n × k must fit in 31 bits, and the CPU must have AVX2.
        unsafe fn pack(weight: &[i8], n: i32, k: i32) -> Result<UniquePtr<PackedWeight>>;
        /// Unsafe: `to` must have n × k elements.
        unsafe fn unpack(packed: &PackedWeight, to: &mut [i8]) -> Result<()>;
        fn packed_bytes(packed: &PackedWeight) -> usize;
        fn blocking(packed: &PackedWeight) -> BlockingFactors;
        fn live_packed_weights() -> usize;
        fn quantizes_input_before() -> bool;
        /// Unsafe: see the header.
        #[allow(clippy::too_many_arguments)]
        unsafe fn linear_int8(
            input: &[f32],
            m: i32,
            n: i32,
            k: i32,
            input_scale: f32,
            input_zero_point: i32,
            weight: &PackedWeight,
            weight_scales: &[f32],
            weight_zero_points: &[i32],
            col_offsets: &[i32],
            bias: &[f32],
            relu: bool,
            output: *mut f32,
            accumulators: *mut i32,
            pack_buffer: *mut u8,
            row_offsets: *mut i32,
            quantized: *mut u8,
            task: i32,
            tasks: i32,
        ) -> Result<()>;
        /// Unsafe: see the header.
        unsafe fn multiply(
            input: &[u8],
            m: i32,
            n: i32,
            k: i32,
            weight: &PackedWeight,
            sums: *mut i32,
            pack_buffer: *mut u8,
        ) -> Result<()>;
        /// Unsafe: see the header.
        #[allow(clippy::too_many_arguments)]
        unsafe fn linear_static(
            input: &[u8],
            m: i32,
            n: i32,
            k: i32,
            input_zero_point: i32,
            weight: &PackedWeight,
            per_channel: bool,
            weight_zero_points: &[i32],
            col_offsets: &[i32],
            bias: &[f32],
            sum_scales: *const f32,
            multipliers: *const f32,
            output_zero_point: i32,
            relu: bool,
            output: *mut u8,
            accumulators: *mut i32,
            pack_buffer: *mut u8,
            row_offsets: *mut i32,
        ) -> Result<()>;
        /// Unsafe: see the header.
        #[allow(dead_code, clippy::too_many_arguments)] // with the feature `profile`
        unsafe fn quantize_input(
            input: &[f32],
            m: i32,
            k: i32,
            input_scale: f32,
            input_zero_point: i32,
            weight: &PackedWeight,
            pack_buffer: *mut u8,
            row_offsets: *mut i32,
            quantized: *mut u8,
        ) -> Result<()>;
        #[allow(dead_code)] // only a test asks for it
        fn use_read_only(n: i32, k: i32) -> Result<()>;
    }
}

/// A weight matrix packed for the instruction set that FBGEMM used when it was made. Dropping it frees the memory.
pub(crate) struct PackedInt8 {
    handle: cxx::UniquePtr<bridge::PackedWeight>,
    out_features: usize,
    in_features: usize,
    isa: Isa,
    blocking: BlockingFactors,
}

// SAFETY: the C++ object owns its memory, which it maps and unmaps itself, and has no link to the thread that made it.
unsafe impl Send for PackedInt8 {}
// SAFETY: after its constructor nothing writes to the C++ object or its memory. Of FBGEMM's methods, this crate calls
// `addr` (const, computes from the blocking), and gives the matrix to `fbgemmPacked`, which only reads it; `unpack`,
// which rewrites the object's current block, is not called. The test `nothing_writes_to_a_packed_matrix` has the object
// and its memory on pages without write access meanwhile.
unsafe impl Sync for PackedInt8 {}

/// What turns sums into outputs: one scale and zero point for all outputs, or one for each.
pub(crate) struct OutputStage<'a> {
    pub(crate) scales: &'a [f32],
    pub(crate) zero_points: &'a [i32],
    pub(crate) col_offsets: &'a [i32],
    /// Empty if there is none.
    pub(crate) bias: &'a [f32],
    pub(crate) relu: bool,
}

impl OutputStage<'_> {
    /// # Panics
    /// If a length does not fit so many outputs.
    fn check(&self, out_features: usize) {
        let channels = self.scales.len();
        assert!(self.col_offsets.len() == out_features && (channels == 1 || channels == out_features));
        assert!(self.zero_points.len() == channels && (self.bias.is_empty() || self.bias.len() == out_features));
    }
}

impl PackedInt8 {
    /// Packs `weight`, `out_features` rows of `in_features`.
    ///
    /// # Errors
    /// Those of [`check_int8_shape`]; [`Error::Fbgemm`] where memory runs out.
    pub(crate) fn new(weight: &[i8], out_features: usize, in_features: usize, cpu: SupportedCpu) -> Result<Self> {
        check_int8_shape("weight", weight.len(), out_features, in_features)?;
        let (n, k) = (dimension(out_features), dimension(in_features));
        // SAFETY: `weight` has n × k elements and the padded matrix fits FBGEMM's 32-bit addressing, both checked just
        // above; a `SupportedCpu` is proof of AVX2.
        let handle = unsafe { bridge::pack(weight, n, k) }.map_err(failed("PackBMatrix"))?;
        let blocking = bridge::blocking(&handle);
        Ok(Self { handle, out_features, in_features, isa: cpu.isa(), blocking })
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
        bridge::packed_bytes(&self.handle)
    }

    /// How many are alive in this process.
    pub(crate) fn live() -> usize {
        bridge::live_packed_weights()
    }

    /// The plain weight again.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn unpack(&self) -> Result<Vec<i8>> {
        let mut weight = super::scratch::zeroed(self.out_features * self.in_features)?;
        // SAFETY: `weight` has n × k elements.
        unsafe { bridge::unpack(&self.handle, &mut weight) }.map_err(failed("PackBMatrix::addr"))?;
        Ok(weight)
    }

    /// FBGEMM's kernels must be those that the weight was packed for.
    fn check_isa(&self, cpu: SupportedCpu) -> Result<()> {
        match cpu.isa() {
            now if now == self.isa => Ok(()),
            now => Err(Error::InstructionSetChanged { packed: self.isa, now }),
        }
    }

    /// The rows of an input of this length.
    ///
    /// # Panics
    /// If the input is not whole rows, the output has not as many, or either is too large for FBGEMM.
    fn rows(&self, input: usize, output: usize) -> usize {
        let rows = input / self.in_features;
        assert!(input == rows * self.in_features && output == rows * self.out_features);
        dimension(input.max(output));
        rows
    }

    /// The elements of 32 bits that FBGEMM needs for the part of the input that it holds quantized.
    pub(crate) fn pack_len(&self) -> usize {
        (self.blocking.MCB * self.blocking.KCB) as usize / size_of::<i32>()
    }

    /// The elements of 32 bits for so many rows of the input in 8 bits, where they are quantized before FBGEMM gets them.
    fn quantized_len(&self, rows: usize) -> usize {
        if bridge::quantizes_input_before() { (rows * self.in_features).div_ceil(size_of::<i32>()) } else { 0 }
    }

    /// The rows that FBGEMM takes at once, and so the most sums of rows that it needs a place for.
    fn block_rows(&self) -> usize {
        self.blocking.MCB as usize
    }

    /// How many rows to hold at once, of so many elements of 32 bits each: FBGEMM's own block of rows, or fewer where the
    /// buffer would be too large.
    pub(crate) fn rows_at_once(&self, elements: usize) -> usize {
        const MOST: usize = (8 << 20) / size_of::<i32>();
        const FEWEST: usize = 32; // the weight is read once for all of them
        (MOST / elements.max(1)).max(FEWEST).min(self.block_rows())
    }

    /// `output` = dequantize(quantize(`input`) · weightᵀ) + bias, in `tasks` parts by FBGEMM's own partition: see
    /// [`tasks::run`] for `execute`.
    ///
    /// # Errors
    /// [`Error::InstructionSetChanged`], those of [`tasks::run`], [`Error::OutOfMemory`], [`Error::Fbgemm`].
    ///
    /// # Panics
    /// If a length does not fit the packed matrix.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear(
        &self,
        input: &[f32],
        params: Params,
        stage: &OutputStage,
        output: &mut [f32],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
        cpu: SupportedCpu,
    ) -> Result<()> {
        self.check_isa(cpu)?;
        stage.check(self.out_features);
        let rows = self.rows(input.len(), output.len());
        let output = SharedOutput::new(output);
        tasks::run(tasks, execute, |task| self.linear_task(input, rows, params, stage, &output, task, tasks))
    }

    /// Some rows at a time, so that the buffer for their sums is bounded. Rows don't depend on each other here (the
    /// input's parameters are the whole call's), so the bits are the same for any number of rows at a time.
    #[allow(clippy::too_many_arguments)]
    fn linear_task(
        &self,
        input: &[f32],
        rows: usize,
        params: Params,
        stage: &OutputStage,
        output: &SharedOutput<f32>,
        task: usize,
        tasks: usize,
    ) -> Result<()> {
        let (width, depth) = (self.out_features, self.in_features);
        let (pack, offsets) = (self.pack_len(), self.block_rows());
        let at_once = rows.min(self.rows_at_once(width));
        let quantized = self.quantized_len(at_once);
        with_operation_buffers(
            [pack, at_once * width, offsets, quantized],
            |[pack_buffer, accumulators, row_offsets, quantized]| {
                for (i, input) in input.chunks(at_once.max(1) * depth).enumerate() {
                    // SAFETY: `linear` checked that input, scales, zero points, offsets and bias have the lengths that rows,
                    // n and k say, that the output has rows × n, and that FBGEMM uses the instruction set that the weight is
                    // packed for; `tasks::run` gives this number to no other task, and FBGEMM writes disjoint parts of the
                    // output for different numbers. The accumulators and, where it is used, the buffer for the quantized
                    // input hold as many rows as this part of the input has; the pack buffer and the row offsets have the
                    // sizes that the weight's blocking asks for.
                    unsafe {
                        bridge::linear_int8(
                            input,
                            dimension(input.len() / depth),
                            dimension(width),
                            dimension(depth),
                            params.scale,
                            params.zero_point,
                            &self.handle,
                            stage.scales,
                            stage.zero_points,
                            stage.col_offsets,
                            stage.bias,
                            stage.relu,
                            output.start().add(i * at_once * width),
                            accumulators.as_mut_ptr(),
                            pack_buffer.as_mut_ptr().cast(),
                            row_offsets.as_mut_ptr(),
                            quantized.as_mut_ptr().cast(),
                            task as i32,
                            tasks as i32,
                        )
                    }
                    .map_err(failed("fbgemmPacked"))?;
                }
                Ok(())
            },
        )
    }

    /// `sums` = `input` · weightᵀ. `pack_buffer` has [`pack_len`](Self::pack_len) elements.
    ///
    /// # Errors
    /// [`Error::InstructionSetChanged`], [`Error::Fbgemm`].
    ///
    /// # Panics
    /// If a length does not fit the packed matrix.
    pub(crate) fn multiply(
        &self,
        input: &[u8],
        sums: &mut [i32],
        pack_buffer: &mut [i32],
        cpu: SupportedCpu,
    ) -> Result<()> {
        self.check_isa(cpu)?;
        let rows = self.rows(input.len(), sums.len());
        assert!(pack_buffer.len() >= self.pack_len());
        let (m, n, k) = (dimension(rows), dimension(self.out_features), dimension(self.in_features));
        // SAFETY: `input` has m × k elements and `sums` m × n; the pack buffer has the size that the weight's blocking
        // asks for, and FBGEMM uses the instruction set that it is packed for, all checked above.
        unsafe {
            let (sums, pack_buffer) = (sums.as_mut_ptr(), pack_buffer.as_mut_ptr().cast());
            bridge::multiply(input, m, n, k, &self.handle, sums, pack_buffer)
        }
        .map_err(failed("fbgemmPacked"))
    }

    /// Unsigned 8 bits in and out, some rows at a time as in [`linear`](Self::linear). `step` gives, for the scale of an
    /// output's weight, the size of one step of its sums, and how many steps of the output that is.
    ///
    /// # Errors
    /// [`Error::InstructionSetChanged`], [`Error::OutOfMemory`], [`Error::Fbgemm`].
    ///
    /// # Panics
    /// If a length does not fit the packed matrix.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear_static(
        &self,
        input: &[u8],
        input_zero_point: i32,
        stage: &OutputStage,
        per_channel: bool,
        step: impl Fn(f32) -> (f32, f32),
        output: &mut [u8],
        output_zero_point: i32,
        cpu: SupportedCpu,
    ) -> Result<()> {
        self.check_isa(cpu)?;
        stage.check(self.out_features);
        let rows = self.rows(input.len(), output.len());
        let (width, depth, channels) = (self.out_features, self.in_features, stage.scales.len());
        assert!(channels == width || !per_channel);
        let (pack, offsets) = (self.pack_len(), self.block_rows());
        let at_once = rows.min(self.rows_at_once(width)).max(1);
        with_operation_buffers([pack, at_once * width, offsets, channels, channels], |buffers| {
            let [pack_buffer, accumulators, row_offsets, sum_scales, multipliers] = buffers;
            for ((&scale, sum_scale), multiplier) in stage.scales.iter().zip(&mut *sum_scales).zip(&mut *multipliers) {
                let (of_sum, of_output) = step(scale);
                (*sum_scale, *multiplier) = (of_sum.to_bits() as i32, of_output.to_bits() as i32);
            }
            let parts = input.chunks(at_once * depth).zip(output.chunks_mut(at_once * width));
            for (input, output) in parts {
                // SAFETY: input, output, zero points, offsets and bias have the lengths that rows, n and k say, checked
                // above, as the instruction set is; the accumulators hold as many rows as this part of the input has.
                // There are as many sum scales and multipliers as zero points, n where `per_channel`: the bits of floats
                // written just now, of the same size and alignment as i32. The pack buffer and the row offsets have the
                // sizes that the weight's blocking asks for.
                unsafe {
                    bridge::linear_static(
                        input,
                        dimension(input.len() / depth),
                        dimension(width),
                        dimension(depth),
                        input_zero_point,
                        &self.handle,
                        per_channel,
                        stage.zero_points,
                        stage.col_offsets,
                        stage.bias,
                        sum_scales.as_ptr().cast(),
                        multipliers.as_ptr().cast(),
                        output_zero_point,
                        stage.relu,
                        output.as_mut_ptr(),
                        accumulators.as_mut_ptr(),
                        pack_buffer.as_mut_ptr().cast(),
                        row_offsets.as_mut_ptr(),
                    )
                }
                .map_err(failed("fbgemmPacked"))?;
            }
            Ok(())
        })
    }

    /// Quantizes the input alone, as [`linear`](Self::linear) does before it multiplies.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    ///
    /// # Panics
    /// If the input is not whole rows.
    #[cfg(feature = "profile")]
    pub(crate) fn quantize_input(&self, input: &[f32], params: Params, cpu: SupportedCpu) -> Result<()> {
        self.check_isa(cpu)?;
        let depth = self.in_features;
        assert!(input.len().is_multiple_of(depth));
        let (pack, offsets) = (self.pack_len(), self.block_rows());
        with_operation_buffers([pack, offsets, self.quantized_len(offsets)], |[pack_buffer, row_offsets, quantized]| {
            for input in input.chunks(offsets * depth) {
                let (pack_buffer, quantized) = (pack_buffer.as_mut_ptr().cast(), quantized.as_mut_ptr().cast());
                let row_offsets = row_offsets.as_mut_ptr();
                let (m, k) = (dimension(input.len() / depth), dimension(depth));
                // SAFETY: `input` has m × k elements; the buffers have the sizes that the weight's blocking asks for, and
                // that for the quantized input, where it is used, m × k; FBGEMM uses the instruction set that it is packed
                // for, checked above.
                unsafe {
                    let (scale, zero_point) = (params.scale, params.zero_point);
                    let weight = &self.handle;
                    bridge::quantize_input(input, m, k, scale, zero_point, weight, pack_buffer, row_offsets, quantized)
                }
                .map_err(failed("PackAWithQuantRowOffset"))?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::{alone, memory_beside_libraries};

    #[test]
    fn nothing_writes_to_a_packed_matrix() {
        alone("ffi::int8::tests::using_a_read_only_matrix", "");
    }

    #[test]
    #[ignore = "a write ends its process"]
    fn using_a_read_only_matrix() {
        SupportedCpu::get().unwrap();
        for (n, k) in [(1, 1), (50, 600), (384, 384), (7, 513)] {
            bridge::use_read_only(n, k).unwrap();
        }
    }

    #[test]
    fn a_matrix_packed_for_another_instruction_set_is_refused() {
        alone("ffi::int8::tests::changing_the_instruction_set", "");
    }

    #[test]
    #[ignore = "changes what FBGEMM uses in its process"]
    fn changing_the_instruction_set() {
        let before = crate::cpu_support().unwrap();
        if before == Isa::Avx2 {
            println!("NOT RUN: this CPU has no other instruction set to change to");
            return;
        }
        let weight = crate::quantize_weight(&[1.0, -1.0, 0.5, 0.25], 2, 2).unwrap();
        let packed = weight.pack().unwrap();
        let fp16 = crate::pack_matrix_fp16(&[1.0, -1.0, 0.5, 0.25], 2, 2).unwrap();
        // SAFETY: this process runs one test in one thread, so nothing reads FBGEMM's global meanwhile.
        unsafe { crate::ffi::library::use_avx2() };
        let error = crate::linear_int8_weight(&[1.0, 2.0], &weight, &packed, None).unwrap_err();
        let changed = Error::InstructionSetChanged { packed: before, now: Isa::Avx2 };
        assert_eq!(error, changed);
        assert_eq!(crate::linear_fp16_weight(&[1.0, 2.0], &fp16, None).unwrap_err(), changed);
        let of = crate::U8Params::new(1.0, 0).unwrap();
        assert_eq!(crate::linear_static(&[1, 2], of, &weight, &packed, None, of).unwrap_err(), changed);
        let packed = weight.pack().unwrap();
        crate::linear_int8_weight(&[1.0, 2.0], &weight, &packed, None).unwrap();
    }

    #[test]
    fn a_matrix_that_memory_cannot_hold_is_an_error() {
        // FBGEMM does not check what its own allocator returns; the bridge does.
        alone("ffi::int8::tests::packing_without_memory", &memory_beside_libraries(1_850_000));
    }

    #[test]
    #[ignore = "needs a process with little memory"]
    fn packing_without_memory() {
        let weight = vec![1i8; 1 << 30];
        let error = crate::pack_matrix(&weight, 1 << 15, 1 << 15).unwrap_err();
        assert_eq!(error, Error::Fbgemm { operation: "PackBMatrix", message: "std::bad_alloc".to_string() });
        assert_eq!(crate::PackedMatrix::live(), 0);
        // A row is padded to 512 elements, so that this takes 2 GiB.
        let error = crate::pack_matrix_fp16(&vec![1.0; 1 << 21], 1 << 21, 1).err();
        let message = "std::bad_alloc".to_string();
        assert_eq!(error, Some(Error::Fbgemm { operation: "PackedGemmMatrixFP16", message }));
        assert_eq!(crate::PackedMatrixFp16::live(), 0);
    }
}
