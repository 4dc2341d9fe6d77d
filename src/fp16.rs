//! The operation with weights in half precision: float in, float out, fp16 weights in between.

use crate::element::Element;
use crate::linear::{check_bias, check_lengths, new_output, rows};
use crate::range::finite_range;
use crate::weight::check_padded;
use crate::{Error, Isa, Result, cpu_support, ffi};
use std::sync::Arc;

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
pub struct PackedMatrixFp16(ffi::PackedFp16);

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
    /// Those of [`cpu_support`].
    pub fn unpack(&self) -> Result<Vec<f32>> {
        cpu_support()?;
        self.0.unpack()
    }

    /// How many fp16 matrices are alive in this process: a gauge for a service that loads and drops models.
    pub fn live() -> usize {
        ffi::PackedFp16::live()
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
/// [`Error::ZeroDimension`], [`Error::WrongLength`]; [`Error::TooLarge`] from 2³¹ elements, `in_features` padded to a
/// multiple of 512 and `out_features` of 32; [`Error::NotFinite`] for a NaN or infinite weight (PyTorch takes them for
/// ±65504); [`Error::Fbgemm`] where memory runs out; and those of [`cpu_support`].
pub fn pack_matrix_fp16(weight: &[f32], out_features: usize, in_features: usize) -> Result<PackedMatrixFp16> {
    let isa = cpu_support()?;
    check_length(weight.len(), out_features, in_features)?;
    finite_range(weight, "weight", isa)?;
    Ok(PackedMatrixFp16(ffi::PackedFp16::new(weight, out_features, in_features, isa)?))
}

/// `input · weightᵀ + bias` with fp16 weights through FBGEMM's fp16 GEMM, bit-identical to PyTorch's
/// `fbgemm_linear_fp16_weight`.
///
/// `input` is float, row-major, any number of rows of `in_features`; the result has as many rows of `out_features`.
/// `bias` has `out_features` elements, or is `None` for a layer without. No rows give an empty result.
///
/// Weights widen to float exactly, and products are added in float by fused multiply-adds, in order of `in_features`;
/// then the bias is added, rounded by itself. With 512-bit registers
/// ([`Isa::Avx512`], [`Isa::Avx512Vnni`]) a row's result doesn't depend on the rows it comes with. With 256-bit ones
/// the last one or two rows of some batches are added up in two or four partial sums, so that a row's result can differ
/// in its last bits from the same row's in another batch, as in PyTorch. From 513 `in_features` on, the outputs of the
/// last block of 16 or 32, where it is not full, get one sum per 512 inputs: kinds of CPU can differ there, too.
///
/// NaN and infinity in `input` and `bias` go through to the outputs by the rules of float arithmetic; where several
/// NaNs meet, which one's bits come out is not promised.
///
/// ```
/// let packed = fbgemm::pack_matrix_fp16(&[0.5, -1.0, 0.25, 1.5, 0.1, -0.5], 2, 3)?;
/// let y = fbgemm::linear_fp16_weight(&[1.0, 2.0, 3.0], &packed, Some(&[0.25, 0.0]))?;
/// let tenth = 0.0999755859375; // 0.1 in fp16
/// assert_eq!(y, [1.0 * 0.5 - 2.0 * 1.0 + 3.0 * 0.25 + 0.25, 1.0 * 1.5 + 2.0 * tenth - 3.0 * 0.5]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::PartialRow`] or [`Error::WrongLength`] for lengths that don't fit the weight; [`Error::TooLarge`] from
/// 2³¹ elements of input or output; [`Error::InstructionSetChanged`]; and those of [`cpu_support`].
pub fn linear_fp16_weight(input: &[f32], packed: &PackedMatrixFp16, bias: Option<&[f32]>) -> Result<Vec<f32>> {
    let mut output = new_output(input, packed.out_features(), packed.in_features())?;
    linear_fp16_weight_into(input, packed, bias, &mut output)?;
    Ok(output)
}

/// [`linear_fp16_weight`] into the caller's buffer, which has rows × `out_features` elements. This allocates nothing
/// but, on a thread's first call, FBGEMM's own buffer of 1 MiB, which the thread keeps to its end.
///
/// ```
/// let packed = fbgemm::pack_matrix_fp16(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
/// let mut output = [0.0; 4];
/// fbgemm::linear_fp16_weight_into(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], &packed, None, &mut output)?;
/// assert_eq!(output, [-0.75, 0.0, -0.25, -2.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// As [`linear_fp16_weight`], and [`Error::WrongLength`] for the output. On an error the output is as it was, unless
/// FBGEMM itself failed ([`Error::Fbgemm`]).
pub fn linear_fp16_weight_into(
    input: &[f32],
    packed: &PackedMatrixFp16,
    bias: Option<&[f32]>,
    output: &mut [f32],
) -> Result<()> {
    let now = cpu_support()?;
    let rows = rows(input.len(), packed.out_features(), packed.in_features())?;
    if packed.isa() != now {
        return Err(Error::InstructionSetChanged { packed: packed.isa(), now });
    }
    check_lengths(bias, output, rows, packed.out_features())?;
    packed.0.linear(input, output)?;
    if let Some(bias) = bias {
        for row in output.chunks_exact_mut(packed.out_features()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    Ok(())
}

/// A linear layer with its weight in fp16, packed for the CPU it runs on: half of fp32's memory, and an error of some
/// 0.0003, where int8's is too large. `Send + Sync`; a clone shares the weight.
///
/// ```
/// let layer = fbgemm::HalfLinear::new(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], Some(&[0.25, 0.0]), 2, 3)?;
/// assert_eq!(layer.forward::<f32>(&[1.0, 2.0, 3.0])?, [-0.5, 0.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone)]
pub struct HalfLinear {
    shared: Arc<Shared>,
}

struct Shared {
    packed: PackedMatrixFp16,
    bias: Option<Vec<f32>>,
}

impl HalfLinear {
    /// From an fp32 layer: `weight` row-major, `out_features` rows of `in_features`; `bias` of `out_features`, or `None`.
    ///
    /// # Errors
    /// Those of [`pack_matrix_fp16`]; [`Error::WrongLength`] for the bias.
    pub fn new(weight: &[f32], bias: Option<&[f32]>, out_features: usize, in_features: usize) -> Result<Self> {
        check_bias(bias, out_features)?;
        let packed = pack_matrix_fp16(weight, out_features, in_features)?;
        Ok(Self { shared: Arc::new(Shared { packed, bias: bias.map(<[f32]>::to_vec) }) })
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        self.shared.packed.out_features()
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        self.shared.packed.in_features()
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.shared.bias.as_deref()
    }

    /// The weight as it was rounded, `out_features` rows of `in_features`.
    ///
    /// # Errors
    /// As [`PackedMatrixFp16::unpack`].
    pub fn weight(&self) -> Result<Vec<f32>> {
        self.shared.packed.unpack()
    }

    /// What the layer holds in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.shared.packed.bytes() + size_of::<f32>() * self.bias().map_or(0, <[f32]>::len) + size_of::<Shared>()
    }

    /// y = x·Wᵀ + b, as [`QuantizedLinear::forward`](crate::QuantizedLinear::forward).
    ///
    /// # Errors
    /// Those of [`linear_fp16_weight`].
    pub fn forward<T: Element>(&self, input: &[T]) -> Result<Vec<T>> {
        let mut output = new_output(input, self.out_features(), self.in_features())?;
        self.forward_into(input, &mut output)?;
        Ok(output)
    }

    /// [`forward`](Self::forward) into the caller's buffer.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::WrongLength`] for the output.
    pub fn forward_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        let Shared { packed, bias } = &*self.shared;
        T::with_f32(input, output, |x, y| linear_fp16_weight_into(x, packed, bias.as_deref(), y))
    }
}

/// With the feature `serde`: stored as the plain weight, widened to float, which packing rounds to the same again.
#[cfg(feature = "serde")]
mod stored {
    use super::HalfLinear;
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Error as _, Serialize, Serializer};

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stored {
        version: u32,
        out_features: usize,
        in_features: usize,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    }

    impl Serialize for HalfLinear {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let stored = Stored {
                version: 1,
                out_features: self.out_features(),
                in_features: self.in_features(),
                weight: self.weight().map_err(S::Error::custom)?,
                bias: self.bias().map(<[f32]>::to_vec),
            };
            stored.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for HalfLinear {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let s = Stored::deserialize(deserializer)?;
            if s.version != 1 {
                return Err(D::Error::custom(format!("the layer has layout version {}, expected 1", s.version)));
            }
            Self::new(&s.weight, s.bias.as_deref(), s.out_features, s.in_features).map_err(D::Error::custom)
        }
    }
}

impl std::fmt::Debug for HalfLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HalfLinear")
            .field("out_features", &self.out_features())
            .field("in_features", &self.in_features())
            .field("bias", &self.shared.bias.is_some())
            .finish_non_exhaustive()
    }
}

/// Checks a matrix's dimensions: none 0, the length right, and, padded as any CPU's kernels pad it, within FBGEMM's
/// 32-bit addressing.
fn check_length(given: usize, out_features: usize, in_features: usize) -> Result<()> {
    /// FBGEMM's blocks: 512 rows of its matrix, which is ours transposed, and 16 or 32 columns.
    const BLOCK: (usize, usize) = (32, 512);
    let padded = out_features.checked_next_multiple_of(BLOCK.0).zip(in_features.checked_next_multiple_of(BLOCK.1));
    check_padded("weight", given, out_features, in_features, padded)
}
