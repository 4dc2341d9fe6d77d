//! The bridge to C++: all of this crate's `unsafe`, behind functions that check what C++ relies on.

use crate::fixed_point::Fixed;
use crate::input::InputScheme;
use crate::range::finite_range;
use crate::weight::Parameters;
use crate::{Error, Isa, Result};
use std::cell::Cell;

/// FBGEMM's own types, as bindgen read them from the provider's headers.
#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code, missing_docs)]
mod types {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}

pub(crate) use types::root::fbgemm::TensorQuantizationParams;
use types::root::fbgemm::{BlockingFactors, inst_set_t};

// SAFETY: bindgen read the layout from the header that the C++ half is compiled with, and each is a plain enum or
// struct of numbers, which a move copies.
unsafe impl cxx::ExternType for inst_set_t {
    type Id = cxx::type_id!("fbgemm::inst_set_t");
    type Kind = cxx::kind::Trivial;
}
// SAFETY: as for `inst_set_t`.
unsafe impl cxx::ExternType for BlockingFactors {
    type Id = cxx::type_id!("fbgemm::BlockingFactors");
    type Kind = cxx::kind::Trivial;
}
// SAFETY: as for `inst_set_t`.
unsafe impl cxx::ExternType for TensorQuantizationParams {
    type Id = cxx::type_id!("fbgemm::TensorQuantizationParams");
    type Kind = cxx::kind::Trivial;
}

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: the functions declared safe accept any argument of their Rust type: those that pack, unpack or compute,
    // which rely on more, are unsafe.
    unsafe extern "C++" {
        include!("fbgemm/include/bridge.h");

        #[namespace = "fbgemm"]
        #[cxx_name = "inst_set_t"]
        type InstructionSet = super::inst_set_t;
        #[namespace = "fbgemm"]
        type BlockingFactors = super::BlockingFactors;
        #[namespace = "fbgemm"]
        type TensorQuantizationParams = super::TensorQuantizationParams;
        type PackedWeight;
        type PackedWeightFp16;

        fn supported_cpu() -> Result<bool>;
        fn instruction_set() -> Result<InstructionSet>;
        fn library_path() -> Result<String>;
        fn choose_quantization_params(min: f32, max: f32, qmin: i32, qmax: i32) -> Result<TensorQuantizationParams>;
        /// Unsafe: `to` must be as long as `from`, and the CPU must have AVX2.
        unsafe fn quantize_int8(from: &[f32], to: &mut [i8], params: TensorQuantizationParams) -> Result<()>;
        /// Unsafe: as `quantize_int8`.
        unsafe fn quantize_uint8(from: &[f32], to: &mut [u8], params: TensorQuantizationParams) -> Result<()>;
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
        /// Unsafe: `weight` must have n × k elements, padded n × k must fit in 31 bits, and the CPU must have AVX2.
        unsafe fn pack(weight: &[i8], n: i32, k: i32) -> Result<UniquePtr<PackedWeight>>;
        /// Unsafe: `to` must have n × k elements, and FBGEMM must use the instruction set that `packed` is for.
        unsafe fn unpack(packed: &PackedWeight, to: &mut [i8]) -> Result<()>;
        fn packed_bytes(packed: &PackedWeight) -> usize;
        fn blocking(packed: &PackedWeight) -> BlockingFactors;
        fn live_packed_weights() -> usize;
        /// Unsafe: see the header.
        #[allow(clippy::too_many_arguments)]
        unsafe fn linear_int8(
            input: &[f32],
            m: i32,
            n: i32,
            k: i32,
            input_params: TensorQuantizationParams,
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
            task: i32,
            tasks: i32,
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
        #[allow(dead_code)] // with the feature `profile`
        unsafe fn quantize_input(
            input: &[f32],
            m: i32,
            k: i32,
            input_params: TensorQuantizationParams,
            weight: &PackedWeight,
            pack_buffer: *mut u8,
            row_offsets: *mut i32,
        ) -> Result<()>;
        /// Unsafe: `weight` must have n × k elements, n × k, padded to whole blocks, must fit in 31 bits, and the CPU
        /// must have AVX2.
        unsafe fn pack_fp16(weight: &[f32], n: i32, k: i32) -> Result<UniquePtr<PackedWeightFp16>>;
        /// Unsafe: `to` must have n × k elements.
        unsafe fn unpack_fp16(packed: &PackedWeightFp16, to: &mut [f32]) -> Result<()>;
        fn packed_bytes_fp16(packed: &PackedWeightFp16) -> usize;
        fn live_packed_weights_fp16() -> usize;
        /// Unsafe: `input` must have m × k elements and `output` m × n, each in 31 bits, and FBGEMM must use the
        /// instruction set that `weight` is packed for.
        unsafe fn linear_fp16(input: &[f32], m: i32, weight: &PackedWeightFp16, output: &mut [f32]) -> Result<()>;
        #[allow(dead_code)] // only a test asks for it
        fn throw_unusual() -> Result<()>;
    }
}

fn failed(operation: &'static str) -> impl Fn(cxx::Exception) -> Error {
    move |e| Error::Fbgemm { operation, message: e.what().to_string() }
}

pub(crate) fn supported_cpu() -> Result<bool> {
    bridge::supported_cpu().map_err(failed("fbgemmSupportedCPU"))
}

pub(crate) fn instruction_set() -> Result<Isa> {
    isa_of(bridge::instruction_set().map_err(failed("fbgemmInstructionSet"))?)
}

fn isa_of(set: inst_set_t) -> Result<Isa> {
    Ok(match set {
        inst_set_t::avx2 => Isa::Avx2,
        inst_set_t::avx512 => Isa::Avx512,
        inst_set_t::avx512_ymm => Isa::Avx512Ymm,
        inst_set_t::avx512_vnni => Isa::Avx512Vnni,
        inst_set_t::avx512_vnni_ymm => Isa::Avx512VnniYmm,
        other => return Err(Error::UnknownInstructionSet { given: other.0 }),
    })
}

pub(crate) fn library_path() -> Result<String> {
    bridge::library_path().map_err(failed("dladdr"))
}

/// FBGEMM's own choice of scale and zero point for values in `min..=max`, onto `qmin..=qmax`.
pub(crate) fn choose_quantization_params(min: f32, max: f32, qmin: i32, qmax: i32) -> Result<TensorQuantizationParams> {
    bridge::choose_quantization_params(min, max, qmin, qmax).map_err(failed("ChooseQuantizationParams"))
}

/// # Panics
/// If the lengths differ.
pub(crate) fn quantize_int8(from: &[f32], to: &mut [i8], params: TensorQuantizationParams, _cpu: Isa) -> Result<()> {
    assert_eq!(from.len(), to.len());
    // SAFETY: the lengths are equal, checked here; an `Isa` is only made after FBGEMM said that it supports the CPU.
    unsafe { bridge::quantize_int8(from, to, params) }.map_err(failed("Quantize"))
}

/// The C++ object behind [`crate::PackedMatrix`]; dropping it frees the packed memory.
pub(crate) struct Packed {
    handle: cxx::UniquePtr<bridge::PackedWeight>,
    out_features: i32,
    in_features: i32,
    isa: Isa,
    blocking: BlockingFactors,
}

// SAFETY: the C++ object owns its memory, has no link to the thread that made it, and is freed by `free`.
unsafe impl Send for Packed {}
// SAFETY: after its constructor nothing writes to the C++ object: `packed_bytes` and `linear_int8` only read it.
// FBGEMM's PackBMatrix has no cache or counter that its const users touch, and PyTorch shares one among threads too.
unsafe impl Sync for Packed {}

impl Packed {
    /// Packs `weight`, `out_features` rows of `in_features`.
    ///
    /// # Panics
    /// If the dimensions don't fit: [`crate::packed`] has refused those with an error.
    pub(crate) fn new(weight: &[i8], out_features: usize, in_features: usize, isa: Isa) -> Result<Self> {
        let (n, k) = (dimension(out_features), dimension(in_features));
        assert!(out_features.checked_mul(in_features) == Some(weight.len()) && n > 0 && k > 0);
        // SAFETY: `weight` has n × k elements, checked above; the caller has checked that the padded matrix fits
        // FBGEMM's 32-bit addressing; an `Isa` is only made after FBGEMM said that it supports the CPU.
        let handle = unsafe { bridge::pack(weight, n, k) }.map_err(failed("PackBMatrix"))?;
        let blocking = bridge::blocking(&handle);
        Ok(Self { handle, out_features: n, in_features: k, isa, blocking })
    }

    /// What an operation with this weight needs beside its sums, in elements of 32 bits: for a part of the quantized
    /// input, and for the sums of its rows, of which FBGEMM takes so many at once.
    fn buffers(&self) -> (usize, usize) {
        let BlockingFactors { MCB: rows, KCB: depth, .. } = self.blocking;
        ((rows * depth) as usize / size_of::<i32>(), rows as usize)
    }

    /// The weight again; [`crate::packed`] has checked that FBGEMM still uses the same instruction set.
    pub(crate) fn unpack(&self) -> Result<Vec<i8>> {
        let mut weight = vec![0; self.out_features as usize * self.in_features as usize];
        // SAFETY: `weight` has n × k elements; the instruction set is checked by the caller.
        unsafe { bridge::unpack(&self.handle, &mut weight) }.map_err(failed("PackBMatrix::unpack"))?;
        Ok(weight)
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn bytes(&self) -> usize {
        bridge::packed_bytes(&self.handle)
    }

    pub(crate) fn live() -> usize {
        bridge::live_packed_weights()
    }
}

/// The C++ object behind [`crate::PackedMatrixFp16`]; dropping it frees the packed memory.
pub(crate) struct PackedFp16 {
    handle: cxx::UniquePtr<bridge::PackedWeightFp16>,
    out_features: usize,
    in_features: usize,
    isa: Isa,
}

// SAFETY: the C++ object owns its memory, has no link to the thread that made it, and frees it with `munmap`.
unsafe impl Send for PackedFp16 {}
// SAFETY: after its constructor nothing writes to the C++ object: `packed_bytes_fp16` and `linear_fp16` take it const,
// and FBGEMM's cblas_gemm_compute only reads it, its scratchpad being each thread's own.
unsafe impl Sync for PackedFp16 {}

impl PackedFp16 {
    /// Packs `weight`, `out_features` rows of `in_features`.
    ///
    /// # Panics
    /// If the dimensions don't fit: [`crate::fp16`] has refused those with an error.
    pub(crate) fn new(weight: &[f32], out_features: usize, in_features: usize, isa: Isa) -> Result<Self> {
        let (n, k) = (dimension(out_features), dimension(in_features));
        assert!(out_features.checked_mul(in_features) == Some(weight.len()) && n > 0 && k > 0);
        // SAFETY: `weight` has n × k elements, checked above; the caller has checked that the padded matrix fits
        // FBGEMM's 32-bit addressing; an `Isa` is only made after FBGEMM said that it supports the CPU.
        let handle = unsafe { bridge::pack_fp16(weight, n, k) }.map_err(failed("PackedGemmMatrixFP16"))?;
        Ok(Self { handle, out_features, in_features, isa })
    }

    /// The weight again, widened to float.
    pub(crate) fn unpack(&self) -> Result<Vec<f32>> {
        let mut weight = vec![0.0; self.out_features() * self.in_features()];
        // SAFETY: `weight` has n × k elements.
        unsafe { bridge::unpack_fp16(&self.handle, &mut weight) }.map_err(failed("PackedGemmMatrixFP16"))?;
        Ok(weight)
    }

    /// `output` = `input` · weightᵀ; [`crate::fp16`] has checked that FBGEMM still uses the same instruction set.
    ///
    /// # Panics
    /// If a length does not fit: [`crate::fp16`] has refused those with an error.
    pub(crate) fn linear(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        let rows = input.len() / self.in_features;
        assert!(input.len() == rows * self.in_features && output.len() == rows * self.out_features);
        for len in [input.len(), output.len()] {
            dimension(len);
        }
        // FBGEMM steps beyond the last row by its own block, which must not leave 31 bits. It computes 120 rows at a
        // time, so that this splits none of them.
        const ROWS: usize = 120 << 20;
        let parts = input.chunks(ROWS * self.in_features).zip(output.chunks_mut(ROWS * self.out_features));
        for (input, output) in parts {
            let rows = dimension(input.len() / self.in_features);
            // SAFETY: input has rows × k elements and output rows × n, as both have as many rows, and these fit 31
            // bits, all checked above; the instruction set is checked by the caller.
            unsafe { bridge::linear_fp16(input, rows, &self.handle, output) }.map_err(failed("cblas_gemm_compute"))?;
        }
        Ok(())
    }

    pub(crate) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(crate) fn in_features(&self) -> usize {
        self.in_features
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn bytes(&self) -> usize {
        bridge::packed_bytes_fp16(&self.handle)
    }

    pub(crate) fn live() -> usize {
        bridge::live_packed_weights_fp16()
    }
}

/// One linear operation, ready to run: everything but the buffers that are written to.
pub(crate) struct Linear<'a> {
    input: &'a [f32],
    rows: i32,
    input_params: TensorQuantizationParams,
    packed: &'a Packed,
    weight: &'a Parameters,
    bias: &'a [f32],
    relu: bool,
    /// How each row gets parameters of its own, in place of `input_params`.
    row_scheme: Option<InputScheme>,
    isa: Isa,
}

/// An operation's output, for tasks that write to disjoint parts of it.
struct Output(*mut f32);

// SAFETY: `Linear::run` gives each task number to one task only, and FBGEMM writes disjoint parts for different
// numbers.
unsafe impl Sync for Output {}

impl<'a> Linear<'a> {
    /// An empty `bias` is none.
    ///
    /// # Panics
    /// If a length does not fit the packed matrix: [`crate::linear`] has refused those with an error.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        input: &'a [f32],
        input_params: TensorQuantizationParams,
        row_scheme: Option<InputScheme>,
        packed: &'a Packed,
        weight: &'a Parameters,
        bias: &'a [f32],
        relu: bool,
        isa: Isa,
    ) -> Self {
        let (n, k) = (packed.out_features as usize, packed.in_features as usize);
        assert!(input.len().is_multiple_of(k) && (bias.is_empty() || bias.len() == n));
        let channels = weight.scales.len();
        assert!(weight.col_offsets.len() == n && (channels == 1 || channels == n));
        assert!(weight.zero_points.len() == channels);
        let rows = dimension(input.len() / k);
        dimension(input.len());
        Self { input, rows, input_params, packed, weight, bias, relu, row_scheme, isa }
    }

    /// Computes `output` in `tasks` parts; `execute` calls what it is given once with each number below `tasks`,
    /// on any threads. A number given twice is ignored the second time; the result has how many ran.
    ///
    /// # Panics
    /// If `output` has another length than rows × out_features, or `tasks` is above [`MAX_TASKS`].
    pub(crate) fn run(
        &self,
        output: &mut [f32],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<usize> {
        use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
        let elements = self.rows as usize * self.packed.out_features as usize;
        assert!(output.len() == elements && tasks <= MAX_TASKS);
        dimension(elements);
        let output = Output(output.as_mut_ptr());
        if tasks == 1 {
            self.task(&output, 0, 1)?;
            return Ok(1);
        }
        let claimed = [const { AtomicU64::new(0) }; MAX_TASKS / 64];
        let ran = AtomicUsize::new(0);
        let error = std::sync::OnceLock::new();
        execute(&|task| {
            let bit = 1 << (task % 64);
            if task >= tasks || claimed[task / 64].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
                return;
            }
            match self.task(&output, task, tasks) {
                Ok(()) => drop(ran.fetch_add(1, Ordering::AcqRel)),
                Err(e) => drop(error.set(e)),
            }
        });
        match error.into_inner() {
            Some(e) => Err(e),
            None => Ok(ran.into_inner()),
        }
    }

    /// Some rows at a time, so that the buffer for their sums is bounded. Rows don't depend on each other here (the
    /// input's parameters are the whole call's), so the bits are the same for any number of rows at a time.
    fn task(&self, output: &Output, task: usize, tasks: usize) -> Result<()> {
        if let Some(scheme) = self.row_scheme {
            return self.rows_task(scheme, output, task, tasks);
        }
        let Packed { out_features: n, in_features: k, .. } = *self.packed;
        let (rows, width) = (self.rows as usize, n as usize);
        let (pack, offsets) = self.packed.buffers();
        let rows_at_once = rows.min(rows_at_once(width, offsets));
        with_scratch(pack + rows_at_once * width + offsets, |scratch| {
            let (pack_buffer, rest) = scratch.split_at_mut(pack);
            let (accumulators, row_offsets) = rest.split_at_mut(rows_at_once * width);
            for (i, input) in self.input.chunks(rows_at_once * k as usize).enumerate() {
                // SAFETY: `new` checked that input, scales, zero points, offsets and bias have the lengths that rows, n
                // and k say, `run`
                // that output has rows × n, and that no other task of this call has this number; the accumulators
                // hold as many rows as this part of the input has. The pack buffer and the row offsets have FBGEMM's
                // own sizes for the instruction set that the weight was packed for, which `crate::linear` has
                // checked to be the one in use.
                unsafe {
                    bridge::linear_int8(
                        input,
                        (input.len() / k as usize) as i32,
                        n,
                        k,
                        self.input_params,
                        &self.packed.handle,
                        &self.weight.scales,
                        &self.weight.zero_points,
                        &self.weight.col_offsets,
                        self.bias,
                        self.relu,
                        output.0.add(i * rows_at_once * width),
                        accumulators.as_mut_ptr(),
                        pack_buffer.as_mut_ptr().cast(),
                        row_offsets.as_mut_ptr(),
                        task as i32,
                        tasks as i32,
                    )
                }
                .map_err(failed("fbgemmPacked"))?;
            }
            Ok(())
        })
    }
}

/// Each row with its own parameters: FBGEMM's own output stage takes one for all, so that it gives the sums alone here.
impl Linear<'_> {
    /// Part `task` of `tasks`: so many of the rows.
    fn rows_task(&self, scheme: InputScheme, output: &Output, task: usize, tasks: usize) -> Result<()> {
        let Packed { out_features: n, in_features: k, .. } = *self.packed;
        let (rows, width, depth) = (self.rows as usize, n as usize, k as usize);
        let (first, last) = (rows * task / tasks, rows * (task + 1) / tasks);
        let (pack, block) = self.packed.buffers();
        let at_once = (last - first).min(rows_at_once(width, block)).min(rows_at_once(depth.div_ceil(4), block));
        if at_once == 0 {
            return Ok(());
        }
        let bytes = (at_once * depth).div_ceil(size_of::<i32>());
        with_scratch(pack + at_once * (width + 2) + bytes, |scratch| {
            let (pack_buffer, rest) = scratch.split_at_mut(pack);
            let (sums, rest) = rest.split_at_mut(at_once * width);
            let (chosen, bytes) = rest.split_at_mut(at_once * 2);
            // SAFETY: any bytes are valid u8, and these are the buffer's own, as many as it has.
            let bytes = unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), size_of_val(bytes)) };
            for start in (first..last).step_by(at_once) {
                let end = last.min(start + at_once);
                let quantized: &mut [u8] = &mut bytes[..(end - start) * depth];
                let from = self.input[start * depth..end * depth].chunks_exact(depth);
                for ((from, to), chosen) in from.zip(quantized.chunks_exact_mut(depth)).zip(chosen.chunks_exact_mut(2))
                {
                    let params = scheme.choose(finite_range(from, "input", self.isa)?)?;
                    quantize_uint8(from, to, params, self.isa)?;
                    chosen.copy_from_slice(&[params.scale.to_bits() as i32, params.zero_point]);
                }
                // SAFETY: `quantized` has (end − start) × k elements, `sums` at least as many rows of n; the pack
                // buffer has FBGEMM's size for the blocking that the weight is packed for.
                unsafe {
                    let m = (end - start) as i32;
                    let (sums, pack_buffer) = (sums.as_mut_ptr(), pack_buffer.as_mut_ptr().cast());
                    bridge::multiply(quantized, m, n, k, &self.packed.handle, sums, pack_buffer)
                }
                .map_err(failed("fbgemmPacked"))?;
                let done = sums.chunks_exact(width).zip(quantized.chunks_exact(depth)).zip(chosen.chunks_exact(2));
                for (row, ((sums, bytes), chosen)) in (start..end).zip(done) {
                    // SAFETY: `run` checked that the output has rows × n elements, and no other task has this row.
                    let output = unsafe { std::slice::from_raw_parts_mut(output.0.add(row * width), width) };
                    let (scale, zero_point) = (f32::from_bits(chosen[0] as u32), chosen[1]);
                    // SAFETY: an `Isa` is only made after `cpu_support` has seen that the CPU has AVX2 and FMA.
                    unsafe { finish_row(sums, bytes, scale, zero_point, self.weight, self.bias, self.relu, output) };
                }
            }
            Ok(())
        })
    }
}

/// FBGEMM's `ReQuantizeForFloat` for one row: y = (sum − zero points' parts) · (scale · scale) + bias, the last two steps
/// as one fused multiply-add.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
fn finish_row(
    sums: &[i32],
    input: &[u8],
    scale: f32,
    zero_point: i32,
    weight: &Parameters,
    bias: &[f32],
    relu: bool,
    output: &mut [f32],
) {
    let row_offset = input.iter().map(|&q| i32::from(q)).sum::<i32>();
    let n = output.len();
    let (sums, col_offsets, output) = (&sums[..n], &weight.col_offsets[..n], &mut output[..n]);
    let exact = |i: usize, of_weight: i32| {
        (sums[i].wrapping_sub(zero_point.wrapping_mul(col_offsets[i]))).wrapping_sub(row_offset.wrapping_mul(of_weight))
            as f32
    };
    if let ([of_weight], [its_zero_point]) = (&weight.scales[..], &weight.zero_points[..]) {
        let multiplier = scale * of_weight;
        if bias.is_empty() {
            (0..n).for_each(|i| output[i] = exact(i, *its_zero_point) * multiplier);
        } else {
            let bias = &bias[..n];
            (0..n).for_each(|i| output[i] = exact(i, *its_zero_point).mul_add(multiplier, bias[i]));
        }
    } else {
        let (scales, zero_points) = (&weight.scales[..n], &weight.zero_points[..n]);
        if bias.is_empty() {
            (0..n).for_each(|i| output[i] = exact(i, zero_points[i]) * (scale * scales[i]));
        } else {
            let bias = &bias[..n];
            (0..n).for_each(|i| output[i] = exact(i, zero_points[i]).mul_add(scale * scales[i], bias[i]));
        }
    }
    if relu {
        output.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
    }
}

/// # Panics
/// If the lengths differ.
fn quantize_uint8(from: &[f32], to: &mut [u8], params: TensorQuantizationParams, _cpu: Isa) -> Result<()> {
    assert_eq!(from.len(), to.len());
    // SAFETY: as for `quantize_int8`.
    unsafe { bridge::quantize_uint8(from, to, params) }.map_err(failed("Quantize"))
}

/// Unsigned 8 bits in and out, some rows at a time as in [`Linear::run`]. An empty `bias` is none.
///
/// # Panics
/// If a length does not fit the packed matrix: [`crate::linear`] has refused those with an error.
pub(crate) fn linear_static(
    input: &[u8],
    packed: &Packed,
    weight: &Parameters,
    bias: &[f32],
    output: &mut [u8],
    form: &Fixed,
    relu: bool,
) -> Result<()> {
    let Packed { out_features: n, in_features: k, .. } = *packed;
    let (width, depth, channels) = (n as usize, k as usize, weight.scales.len());
    let rows = input.len() / depth;
    assert!(input.len() == rows * depth && output.len() == rows * width && (bias.is_empty() || bias.len() == width));
    assert!(weight.col_offsets.len() == width && (channels == 1 || channels == width));
    assert!(weight.zero_points.len() == channels && (channels == width || !weight.per_channel));
    dimension(input.len().max(output.len()));
    let (pack, offsets) = packed.buffers();
    let rows_at_once = rows.min(rows_at_once(width, offsets)).max(1);
    with_scratch(pack + rows_at_once * width + offsets + 2 * channels, |scratch| {
        let (pack_buffer, rest) = scratch.split_at_mut(pack);
        let (accumulators, rest) = rest.split_at_mut(rows_at_once * width);
        let (row_offsets, rest) = rest.split_at_mut(offsets);
        let (sum_scales, multipliers) = rest.split_at_mut(channels);
        for ((&scale, sum_scale), multiplier) in weight.scales.iter().zip(&mut *sum_scales).zip(&mut *multipliers) {
            let (of_sum, of_output) = form.step(scale);
            (*sum_scale, *multiplier) = (of_sum.to_bits() as i32, of_output.to_bits() as i32);
        }
        let parts = input.chunks(rows_at_once * depth).zip(output.chunks_mut(rows_at_once * width));
        for (input, output) in parts {
            // SAFETY: input, output, zero points, offsets and bias have the lengths that rows, n and k say, checked
            // above; the accumulators hold as many rows as this part of the input has. There are as many sum scales and
            // multipliers as zero points, n where `per_channel`: the bits of floats written just now, of the same size and alignment as i32.
            // The pack buffer and the row offsets have FBGEMM's own sizes for the blocking that the weight is packed
            // for, which is for the instruction set in use: `crate::linear` has checked that.
            unsafe {
                bridge::linear_static(
                    input,
                    (input.len() / depth) as i32,
                    n,
                    k,
                    form.input_params.zero_point(),
                    &packed.handle,
                    weight.per_channel,
                    &weight.zero_points,
                    &weight.col_offsets,
                    bias,
                    sum_scales.as_ptr().cast(),
                    multipliers.as_ptr().cast(),
                    form.output_params.zero_point(),
                    relu,
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

#[cfg(feature = "profile")]
impl Linear<'_> {
    /// Quantizes the input alone, as [`run`](Self::run) does before it multiplies.
    pub(crate) fn quantize_input(&self) -> Result<()> {
        let k = self.packed.in_features;
        let (pack, offsets) = self.packed.buffers();
        with_scratch(pack + offsets, |scratch| {
            let (pack_buffer, row_offsets) = scratch.split_at_mut(pack);
            let (pack_buffer, row_offsets) = (pack_buffer.as_mut_ptr().cast(), row_offsets.as_mut_ptr());
            // SAFETY: `new` checked that input has rows × k elements; the buffers have FBGEMM's sizes for the
            // blocking that the weight is packed for.
            unsafe {
                let (handle, params) = (&self.packed.handle, self.input_params);
                bridge::quantize_input(self.input, self.rows, k, params, handle, pack_buffer, row_offsets)
            }
            .map_err(failed("PackAWithQuantRowOffset"))
        })
    }
}

/// Rows whose sums are held at once: FBGEMM's own block of rows, or fewer where many outputs make that too much.
fn rows_at_once(out_features: usize, block: usize) -> usize {
    const SUMS: usize = (8 << 20) / size_of::<i32>();
    const FEWEST: usize = 32; // the weight is read once for all of them
    (SUMS / out_features).max(FEWEST).min(block)
}

/// The most tasks that one operation can be split into.
pub(crate) const MAX_TASKS: usize = 1024;

fn dimension(size: usize) -> i32 {
    i32::try_from(size).expect("sizes beyond FBGEMM's 32-bit addressing were refused with an error")
}

thread_local! {
    /// This thread's buffer, between operations.
    static SCRATCH: Cell<Vec<i32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with a buffer of `len` elements of any content, aligned to a cache line as FBGEMM's own buffers are.
fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [i32]) -> T) -> T {
    const LINE: usize = 64 / size_of::<i32>();
    // Taken out meanwhile: an operation inside an operation, if there ever were one, would get a buffer of its own.
    let mut buffer = SCRATCH.take();
    if buffer.len() < len + LINE {
        drop(buffer);
        buffer = vec![0; len + LINE]; // anew: there is nothing to copy over
    }
    let start = buffer.as_ptr().align_offset(64).min(LINE);
    let result = work(&mut buffer[start..start + len]);
    SCRATCH.set(buffer);
    result
}

/// Gives this thread's buffer back.
pub(crate) fn release_scratch() {
    drop(SCRATCH.take());
}

/// The size of this thread's buffer in bytes.
pub(crate) fn scratch_bytes() -> usize {
    let buffer = SCRATCH.take();
    let bytes = buffer.capacity() * size_of::<i32>();
    SCRATCH.set(buffer);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_that_is_no_std_exception_is_an_error() {
        let error = bridge::throw_unusual().map_err(failed("throw")).unwrap_err();
        assert_eq!(error.to_string(), "FBGEMM failed in throw: a C++ exception that is not a std::exception");
    }

    #[test]
    fn a_matrix_packed_for_another_instruction_set_is_refused() {
        // In a process of its own, as it changes what FBGEMM uses for all of it.
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ffi::tests::changing_the_instruction_set", "--ignored", "--test-threads", "1"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    #[ignore = "changes what FBGEMM uses in its process"]
    fn changing_the_instruction_set() {
        unsafe extern "C" {
            #[link_name = "_ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE"]
            fn force_isa(isa: inst_set_t);
        }
        let before = crate::cpu_support().unwrap();
        if before == Isa::Avx2 {
            println!("NOT RUN: this CPU has no other instruction set to change to");
            return;
        }
        let weight = crate::quantize_weight(&[1.0, -1.0, 0.5, 0.25], 2, 2).unwrap();
        let packed = weight.pack().unwrap();
        let fp16 = crate::pack_matrix_fp16(&[1.0, -1.0, 0.5, 0.25], 2, 2).unwrap();
        // SAFETY: this process runs one test in one thread, so nothing reads FBGEMM's global meanwhile.
        unsafe { force_isa(inst_set_t::avx2) };
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
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -v $1; shift; exec \"$@\"", "sh", "2300000"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "ffi::tests::packing_without_memory", "--ignored", "--test-threads", "1"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
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
