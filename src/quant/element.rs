//! The number types of inputs, outputs and weights: everything is computed in `f32`.

use super::range::finite_range;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::scratch::with_conversion_buffer;

/// A type of inputs and outputs: `f32`, `f64`, and, with the feature `half`, `half::f16` and `half::bf16`.
pub trait Element: Copy + Default + sealed::Sealed {}

/// The conversions, which users neither see nor implement.
pub(crate) mod sealed {
    use crate::ffi::scratch::Zeroable;

    #[allow(private_bounds)]
    pub trait Sealed: Zeroable + Send + Sync + 'static {
        /// Each value as `f32`, rounded to nearest, ties to even. The slices are equally long.
        fn widen(from: &[Self], to: &mut [f32]);
        /// Each value rounded to this type, to nearest, ties to even. The slices are equally long.
        fn narrow(from: &[f32], to: &mut [Self]);
        /// The same slice, where this type is `f32`.
        fn as_f32(_: &[Self]) -> Option<&[f32]> {
            None
        }
        /// The same slice, where this type is `f32`.
        fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
            None
        }
    }
}

impl Element for f32 {}
impl sealed::Sealed for f32 {
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }

    fn as_f32_mut(values: &mut [f32]) -> Option<&mut [f32]> {
        Some(values)
    }
}

impl Element for f64 {}
impl sealed::Sealed for f64 {
    fn widen(from: &[f64], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = from as f32);
    }

    fn narrow(from: &[f32], to: &mut [f64]) {
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = f64::from(from));
    }
}

#[cfg(feature = "half")]
mod half_precision {
    use super::{Element, sealed::Sealed};
    use half::slice::HalfFloatSliceExt;
    use half::{bf16, f16};

    impl Element for f16 {}
    impl Sealed for f16 {
        // By slices, for which the crate uses the CPU's instructions.
        fn widen(from: &[f16], to: &mut [f32]) {
            from.convert_to_f32_slice(to);
        }

        fn narrow(from: &[f32], to: &mut [f16]) {
            to.convert_from_f32_slice(from);
        }
    }

    impl Element for bf16 {}
    impl Sealed for bf16 {
        fn widen(from: &[bf16], to: &mut [f32]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from_bits(u32::from(from.to_bits()) << 16));
        }

        fn narrow(from: &[f32], to: &mut [bf16]) {
            // Without a branch, so that the compiler uses vector registers: as `bf16::from_f32`, which has some.
            to.iter_mut().zip(from).for_each(|(to, from)| {
                let bits = from.to_bits();
                let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
                let quiet = bits >> 16 | 0x40;
                *to = bf16::from_bits(if from.is_nan() { quiet } else { rounded } as u16);
            });
        }
    }
}

/// How many values are converted at once: whole vector registers, so that FBGEMM's kernels see each value where they would
/// without pieces, and the cache holds them.
const PIECE: usize = 1 << 14;

/// [`finite_range`] of values of any type, converted.
pub(crate) fn range<T: Element>(values: &[T], what: &'static str, cpu: SupportedCpu) -> Result<(f32, f32)> {
    if let Some(values) = T::as_f32(values) {
        return finite_range(values, what, cpu);
    }
    with_conversion_buffer(PIECE.min(values.len()), |buffer| {
        let mut all: Option<(f32, f32)> = None;
        for (i, piece) in values.chunks(PIECE).enumerate() {
            let converted = &mut buffer[..piece.len()];
            T::widen(piece, converted);
            let (low, high) = finite_range(converted, what, cpu).map_err(|e| match e {
                Error::NotFinite { what, index, value } => Error::NotFinite { what, index: index + i * PIECE, value },
                other => other,
            })?;
            all = Some(all.map_or((low, high), |(lowest, highest)| (lowest.min(low), highest.max(high))));
        }
        Ok(all.unwrap_or((0.0, 0.0)))
    })
}

/// Runs `work` on the values as `f32`, and on as many of the output's elements: on all at once where this type is
/// `f32`, else piece by piece, so that no copy of all of them is made.
pub(crate) fn in_pieces<T: Element, U>(
    values: &[T],
    output: &mut [U],
    mut work: impl FnMut(&[f32], &mut [U]) -> Result<()>,
) -> Result<()> {
    if let Some(values) = T::as_f32(values) {
        return work(values, output);
    }
    with_conversion_buffer(PIECE.min(values.len()), |buffer| {
        values.chunks(PIECE).zip(output.chunks_mut(PIECE)).try_for_each(|(piece, output)| {
            let converted = &mut buffer[..piece.len()];
            T::widen(piece, converted);
            work(converted, output)
        })
    })
}

#[cfg(all(test, feature = "half"))]
mod tests {
    use super::sealed::Sealed;
    use half::{bf16, f16};

    /// Against the crate's conversion of single values, for every pattern of the upper bits and the ties below them.
    #[test]
    fn slices_convert_as_single_values_do() {
        let all: Vec<f32> = (0..=u32::from(u16::MAX))
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1000, 0x3000].map(|low| high << 16 | low))
            .map(f32::from_bits)
            .collect();
        let (mut narrow, mut wide) = (vec![bf16::ZERO; all.len()], vec![0f32; all.len()]);
        bf16::narrow(&all, &mut narrow);
        bf16::widen(&narrow, &mut wide);
        for ((x, narrow), wide) in all.iter().zip(&narrow).zip(&wide) {
            assert_eq!(narrow.to_bits(), bf16::from_f32(*x).to_bits(), "{x:e}");
            assert_eq!(wide.to_bits(), narrow.to_f32().to_bits(), "{x:e}");
        }
        let mut narrow = vec![f16::ZERO; all.len()];
        f16::narrow(&all, &mut narrow);
        for (x, narrow) in all.iter().zip(&narrow).filter(|(x, _)| !x.is_nan()) {
            assert_eq!(narrow.to_bits(), f16::from_f32(*x).to_bits(), "{x:e}");
        }
    }
}
