//! Rows of embedding tables: their sizes, and the numbers that look-ups take and give.

/// The numbers of bits that an element can have: 32 and 16 are floats, the others quantized.
pub(crate) const BITS: [u32; 5] = [32, 16, 8, 4, 2];

/// The most elements that a row can have. FBGEMM generates code for each register of a row, some 40 bytes for 16
/// elements, and does not check that there is room for it.
pub(crate) const MAX_DIMENSION: usize = 1 << 20;

/// The bytes of a row: the elements, and where they are quantized scale and bias.
///
/// # Panics
/// If there is no such row: bits that are none of [`BITS`], a dimension that is 0, beyond [`MAX_DIMENSION`] or not a
/// whole number of bytes.
pub(crate) fn row_bytes(bits: u32, dimension: usize) -> usize {
    assert!(BITS.contains(&bits) && (1..=MAX_DIMENSION).contains(&dimension));
    let elements = dimension * bits as usize;
    assert!(elements.is_multiple_of(8), "a row is a whole number of bytes");
    elements / 8 + scale_bytes(bits)
}

/// The bytes of a row's scale and bias at its end.
#[inline]
pub(crate) fn scale_bytes(bits: u32) -> usize {
    match bits {
        8 => 2 * size_of::<f32>(),
        4 | 2 => 2 * size_of::<u16>(),
        _ => 0,
    }
}

/// A table where it lies: the first rows of its memory.
#[cfg_attr(not(fbgemm_linked), allow(dead_code))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    pub(crate) memory: &'a [u8],
    pub(crate) rows: usize,
}

/// What the look-ups need of their types, out of users' sight: only this crate implements it.
pub mod sealed {
    /// An integer that FBGEMM takes for an index or offset.
    pub trait Integer: Copy + Into<i64> + Send + Sync + 'static {
        /// Whether it has 64 bits, else 32.
        const WIDE: bool;
        /// Whether none is negative or less than the one before it.
        fn ascend(values: &[Self]) -> bool;
    }

    /// A float that FBGEMM writes.
    #[allow(private_bounds)]
    pub trait Float: crate::ffi::scratch::Zeroable + Send + Sync + 'static {
        /// Whether it is fp16, else fp32.
        const HALF: bool;
        /// Whether all of each `step`th element, from the first on, are finite.
        fn are_finite(values: &[Self], step: usize) -> bool;
        /// Divided by a number of rows, as PyTorch divides a tensor of this type.
        fn divide(values: &mut [Self], rows: usize);
        /// The same slice, where this type is `f32`.
        fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
            None
        }
    }

    macro_rules! integer {
        ($($type:ty, $wide:literal);*) => {$(
            impl Integer for $type {
                const WIDE: bool = $wide;

                #[inline]
                fn ascend(values: &[Self]) -> bool {
                    // Without a branch for each, so that the compiler uses vector registers: where all are positive, no
                    // difference overflows, and the sign of all that is negative stays in the end.
                    let first = values.first().map_or(0, |&first| first);
                    let steps = values.iter().zip(values.iter().skip(1));
                    steps.fold(first, |signs, (&a, &b)| signs | b | b.wrapping_sub(a)) >= 0
                }
            }
        )*};
    }
    integer!(i32, false; i64, true);

    /// Whether all of each `step`th value are right: without a branch for each, as nearly always they are.
    #[inline]
    fn every<T: Copy>(values: &[T], step: usize, right: impl Fn(T) -> bool) -> bool {
        let (mut all, mut i) = (true, 0);
        while let Some(&value) = values.get(i) {
            all &= right(value);
            i += step;
        }
        all
    }

    impl Float for f32 {
        const HALF: bool = false;

        #[inline]
        fn are_finite(values: &[Self], step: usize) -> bool {
            const EXPONENT: u32 = 0x7f80_0000;
            every(values, step, |x| x.to_bits() & EXPONENT != EXPONENT)
        }

        fn divide(values: &mut [Self], rows: usize) {
            let rows = rows as f32;
            values.iter_mut().for_each(|value| *value /= rows);
        }

        fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]> {
            Some(values)
        }
    }

    #[cfg(feature = "half")]
    impl Float for half::f16 {
        const HALF: bool = true;

        #[inline]
        fn are_finite(values: &[Self], step: usize) -> bool {
            const EXPONENT: u16 = 0x7c00;
            every(values, step, |x| x.to_bits() & EXPONENT != EXPONENT)
        }

        fn divide(values: &mut [Self], rows: usize) {
            // In fp32 between, as PyTorch; the number of rows is rounded to fp16 first.
            let rows = half::f16::from_f32(rows as f32).to_f32();
            values.iter_mut().for_each(|value| *value = half::f16::from_f32(value.to_f32() / rows));
        }
    }
}

/// Floats, as the bytes of their rows.
pub(crate) struct Floats(pub(crate) Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the bytes of floats are valid u8, and these are the vector's own, as many as it has.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(&self.0[..])) }
    }
}
