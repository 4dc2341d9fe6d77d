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
pub(crate) fn scale_bytes(bits: u32) -> usize {
    match bits {
        8 => 2 * size_of::<f32>(),
        4 | 2 => 2 * size_of::<u16>(),
        _ => 0,
    }
}

/// A table where it lies: the first rows of its memory.
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
    }

    /// A float that FBGEMM writes.
    #[allow(private_bounds)]
    pub trait Float: crate::ffi::scratch::Zeroable + Send + Sync + 'static {
        /// Whether it is fp16, else fp32.
        const HALF: bool;
        fn is_finite(self) -> bool;
        /// Divided by a number of rows, as PyTorch divides a tensor of this type.
        fn divide(values: &mut [Self], rows: usize);
    }

    impl Integer for i32 {
        const WIDE: bool = false;
    }

    impl Integer for i64 {
        const WIDE: bool = true;
    }

    impl Float for f32 {
        const HALF: bool = false;

        fn is_finite(self) -> bool {
            self.is_finite()
        }

        fn divide(values: &mut [Self], rows: usize) {
            let rows = rows as f32;
            values.iter_mut().for_each(|value| *value /= rows);
        }
    }

    #[cfg(feature = "half")]
    impl Float for half::f16 {
        const HALF: bool = true;

        fn is_finite(self) -> bool {
            self.is_finite()
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
