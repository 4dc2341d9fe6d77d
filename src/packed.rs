//! The packed matrix: an owned handle that never leaves the process.

use crate::weight::{check_length, fingerprint};
use crate::{Isa, Result, cpu_support, ffi};

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
    packed: ffi::Packed,
    out_features: usize,
    in_features: usize,
    fingerprint: u64,
}

impl PackedMatrix {
    pub(crate) fn new(weight: &[i8], out_features: usize, in_features: usize, fingerprint: u64) -> Result<Self> {
        let isa = cpu_support()?;
        let packed = ffi::Packed::new(weight, out_features, in_features, isa)?;
        Ok(Self { packed, out_features, in_features, fingerprint })
    }

    /// The number of outputs of the layer.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The number of inputs of the layer.
    pub fn in_features(&self) -> usize {
        self.in_features
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
    /// [`Error::InstructionSetChanged`](crate::Error::InstructionSetChanged), and those of [`cpu_support`].
    pub fn unpack(&self) -> Result<Vec<i8>> {
        let now = cpu_support()?;
        if self.isa() != now {
            return Err(crate::Error::InstructionSetChanged { packed: self.isa(), now });
        }
        self.packed.unpack()
    }

    /// How many packed matrices are alive in this process: a gauge for a service that loads and drops models.
    pub fn live() -> usize {
        ffi::Packed::live()
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn ffi(&self) -> &ffi::Packed {
        &self.packed
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("out_features", &self.out_features)
            .field("in_features", &self.in_features)
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
/// those of [`cpu_support`].
pub fn pack_matrix(weight: &[i8], in_features: usize, out_features: usize) -> Result<PackedMatrix> {
    cpu_support()?;
    check_length("weight", weight.len(), out_features, in_features)?;
    PackedMatrix::new(weight, out_features, in_features, fingerprint(weight, out_features, in_features))
}
