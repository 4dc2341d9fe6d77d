//! Packed matrices: owned handles that never leave the process.

use crate::cpu::SupportedCpu;
use crate::error::Result;
use crate::ffi::fp16::PackedFp16;
use crate::ffi::int8::PackedInt8;
use crate::ffi::{check_fp16_shape, check_int8_shape};
use crate::isa::Isa;
use crate::quant::range::finite_range;
use crate::quant::weight::{QuantizedWeight, fingerprint};

/// An int8 weight matrix in the layout that FBGEMM's kernels read on this CPU, as PyTorch's
/// `fbgemm_pack_quantized_matrix` makes it.
///
/// The layout depends on the CPU, so this type can't be serialized: store the
/// [`QuantizedWeight`](crate::QuantizedWeight) and pack it where it is used. One handle serves any number of threads
/// (`Send + Sync`; operations only read it), and dropping it frees the memory.
///
/// ```
/// fn shared_by_threads<T: Send + Sync>() {}
/// shared_by_threads::<fbgemm::PackedMatrix>();
/// ```
///
/// ```compile_fail,E0277
/// fn stored<T: serde::Serialize>() {}
/// stored::<fbgemm::PackedMatrix>();
/// ```
pub struct PackedMatrix {
    packed: PackedInt8,
    /// Of the weight that it was made from.
    fingerprint: u64,
}

impl PackedMatrix {
    fn new(weight: &[i8], out_features: usize, in_features: usize, fingerprint: u64) -> Result<Self> {
        let packed = PackedInt8::new(weight, out_features, in_features, SupportedCpu::get()?)?;
        Ok(Self { packed, fingerprint })
    }

    /// The number of outputs of the layer.
    pub fn out_features(&self) -> usize {
        self.packed.out_features()
    }

    /// The number of inputs of the layer.
    pub fn in_features(&self) -> usize {
        self.packed.in_features()
    }

    /// The instruction set that it was packed for.
    pub fn isa(&self) -> Isa {
        self.packed.isa()
    }

    /// The packed matrix's size in memory in bytes: one per weight, and padding to whole blocks.
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// The plain matrix again, exactly: `out_features` rows of `in_features`.
    ///
    /// ```
    /// let plain = [1, -2, 3, -4, 5, -6];
    /// assert_eq!(fbgemm::pack_matrix(&plain, 3, 2)?.unpack()?, plain);
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn unpack(&self) -> Result<Vec<i8>> {
        self.packed.unpack()
    }

    /// How many packed matrices are alive in this process: a gauge for a service that loads and drops models.
    pub fn live() -> usize {
        PackedInt8::live()
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn ffi(&self) -> &PackedInt8 {
        &self.packed
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("out_features", &self.out_features())
            .field("in_features", &self.in_features())
            .field("isa", &self.isa())
            .finish_non_exhaustive()
    }
}

/// Packs a quantized weight matrix for the CPU it runs on: PyTorch's `fbgemm_pack_quantized_matrix`.
///
/// `weight` is row-major, `out_features` rows of `in_features`: a [`QuantizedWeight`](crate::QuantizedWeight)'s
/// [`data`](crate::QuantizedWeight::data). Note the order of the dimensions, which is PyTorch's.
///
/// ```
/// let packed = fbgemm::pack_matrix(&[1, -2, 3, -4, 5, -6], 3, 2)?; // 3 inputs, 2 outputs
/// assert_eq!((packed.in_features(), packed.out_features()), (3, 2));
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::ZeroDimension`](crate::Error::ZeroDimension), [`Error::WrongLength`](crate::Error::WrongLength),
/// [`Error::TooLarge`](crate::Error::TooLarge); [`Error::Fbgemm`](crate::Error::Fbgemm) where memory runs out; and
/// those of [`cpu_support`](crate::cpu_support).
pub fn pack_matrix(weight: &[i8], in_features: usize, out_features: usize) -> Result<PackedMatrix> {
    SupportedCpu::get()?;
    check_int8_shape("weight", weight.len(), out_features, in_features)?;
    PackedMatrix::new(weight, out_features, in_features, fingerprint(weight, out_features, in_features))
}

impl QuantizedWeight {
    /// Packs this weight for the CPU it runs on; the same as [`pack_matrix`] of its data.
    ///
    /// # Errors
    /// As [`pack_matrix`].
    pub fn pack(&self) -> Result<PackedMatrix> {
        PackedMatrix::new(self.data(), self.out_features(), self.in_features(), self.parameters().fingerprint)
    }
}

/// A weight matrix in half precision (fp16), in the layout that FBGEMM's kernels read on this CPU, as PyTorch's
/// `fbgemm_pack_gemm_matrix_fp16` makes it.
///
/// The layout depends on the CPU, so this type can't be serialized: store the weight and pack it where it is used. One
/// handle serves any number of threads (`Send + Sync`; operations only read it), and dropping it frees the memory.
///
/// ```
/// fn shared_by_threads<T: Send + Sync>() {}
/// shared_by_threads::<fbgemm::PackedMatrixFp16>();
/// ```
///
/// ```compile_fail,E0277
/// fn stored<T: serde::Serialize>() {}
/// stored::<fbgemm::PackedMatrixFp16>();
/// ```
pub struct PackedMatrixFp16(PackedFp16);

impl PackedMatrixFp16 {
    /// The number of outputs of the layer.
    pub fn out_features(&self) -> usize {
        self.0.out_features()
    }

    /// The number of inputs of the layer.
    pub fn in_features(&self) -> usize {
        self.0.in_features()
    }

    /// The instruction set that it was packed for.
    pub fn isa(&self) -> Isa {
        self.0.isa()
    }

    /// The packed matrix's size in memory in bytes: two per weight, `out_features` padded to whole blocks of 16 or 32.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The weight again as it was rounded, `out_features` rows of `in_features`.
    ///
    /// ```
    /// let packed = fbgemm::pack_matrix_fp16(&[0.1, 1.0, -2.5, 4.0], 2, 2)?;
    /// assert_eq!(packed.unpack()?, [0.0999755859375, 1.0, -2.5, 4.0]);
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn unpack(&self) -> Result<Vec<f32>> {
        self.0.unpack()
    }

    /// How many fp16 matrices are alive in this process: a gauge for a service that loads and drops models.
    pub fn live() -> usize {
        PackedFp16::live()
    }

    pub(crate) fn ffi(&self) -> &PackedFp16 {
        &self.0
    }
}

impl std::fmt::Debug for PackedMatrixFp16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrixFp16")
            .field("out_features", &self.out_features())
            .field("in_features", &self.in_features())
            .field("isa", &self.isa())
            .finish_non_exhaustive()
    }
}

/// Rounds a weight matrix to half precision and packs it for the CPU it runs on: PyTorch's
/// `fbgemm_pack_gemm_matrix_fp16`.
///
/// `weight` is float, row-major, `out_features` rows of `in_features` (as PyTorch's `nn.Linear.weight`). Each value is
/// clamped to ±65504, the largest of its kind, and rounded to fp16, ties to even; below 6.1e-5 the steps stay 2⁻²⁴ wide
/// (subnormals). PyTorch also clamps the tensor that it was given, where it lies; here `weight` stays as it is.
///
/// ```
/// let packed = fbgemm::pack_matrix_fp16(&[0.5, -1.0, 0.25, 1.5, 1e6, -0.5], 2, 3)?; // 2 outputs, 3 inputs
/// assert_eq!((packed.out_features(), packed.in_features()), (2, 3));
/// let y = fbgemm::linear_fp16_weight(&[0.0, 1.0, 0.0], &packed, None)?;
/// assert_eq!(y, [-1.0, 65504.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::ZeroDimension`](crate::Error::ZeroDimension), [`Error::WrongLength`](crate::Error::WrongLength); [`Error::TooLarge`](crate::Error::TooLarge) from 2³¹ elements, `in_features` padded to a
/// multiple of 512 and `out_features` of 32; [`Error::NotFinite`](crate::Error::NotFinite) for a NaN or infinite weight (PyTorch takes them for
/// ±65504); [`Error::Fbgemm`](crate::Error::Fbgemm) where memory runs out; and those of [`cpu_support`](crate::cpu_support).
pub fn pack_matrix_fp16(weight: &[f32], out_features: usize, in_features: usize) -> Result<PackedMatrixFp16> {
    let cpu = SupportedCpu::get()?;
    check_fp16_shape("weight", weight.len(), out_features, in_features)?;
    finite_range(weight, "weight", cpu)?;
    Ok(PackedMatrixFp16(PackedFp16::new(weight, out_features, in_features, cpu)?))
}
