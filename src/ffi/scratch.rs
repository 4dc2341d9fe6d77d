//! Memory that operations write to: each thread's buffers, kept from call to call, and new outputs.

use crate::error::{Error, Result};
use std::alloc::Layout;
use std::cell::Cell;
use std::thread::LocalKey;

thread_local! {
    /// For sums, packed inputs and the like, between operations.
    static OPERATION: Cell<Vec<i32>> = const { Cell::new(Vec::new()) };
    /// For the indices of bags without those that don't count, between calls.
    static INDICES: Cell<Vec<i64>> = const { Cell::new(Vec::new()) };
    /// For inputs and outputs as `f32` that have another type, between calls.
    static CONVERSION: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// For the gates of recurrent layers, between calls.
    static SEQUENCE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with this thread's buffer for operations, in parts of these lengths and of any content. The first is
/// aligned to a cache line as FBGEMM's own buffers are, the others follow it.
///
/// # Errors
/// [`Error::OutOfMemory`], and those of `work`.
#[inline]
pub(crate) fn with_operation_buffers<const N: usize, R>(
    lens: [usize; N],
    work: impl FnOnce([&mut [i32]; N]) -> Result<R>,
) -> Result<R> {
    #[cfg(all(test, fbgemm_linked))]
    if super::guarded::is_on() {
        // Each part ends or begins at a page without access, not only the last or the first.
        let mut parts = [const { Vec::new() }; N];
        for (part, len) in parts.iter_mut().zip(lens) {
            *part = zeroed(len)?;
        }
        return work(parts.each_mut().map(|part| &mut part[..]));
    }
    let all = lens.iter().try_fold(0usize, |all, &len| all.checked_add(len));
    with_buffer(&OPERATION, all.ok_or(Error::OutOfMemory { bytes: usize::MAX })?, |mut rest| {
        work(lens.map(|len| rest.split_off_mut(..len).expect("the buffer is as long as all parts")))
    })
}

/// A buffer as [`with_operation_buffers`] gives, for inputs and outputs converted: an operation may run meanwhile.
pub(crate) fn with_conversion_buffer<R>(len: usize, work: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    with_buffer(&CONVERSION, len, work)
}

/// A buffer as [`with_operation_buffers`] gives, for a recurrent layer's gates: conversions and operations may run meanwhile.
pub(crate) fn with_sequence_buffer<R>(len: usize, work: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    with_buffer(&SEQUENCE, len, work)
}

/// A buffer as [`with_operation_buffers`] gives, for indices and offsets.
pub(crate) fn with_index_buffer<R>(len: usize, work: impl FnOnce(&mut [i64]) -> Result<R>) -> Result<R> {
    with_buffer(&INDICES, len, work)
}

fn with_buffer<T: Zeroable, R>(
    slot: &'static LocalKey<Cell<Vec<T>>>,
    len: usize,
    work: impl FnOnce(&mut [T]) -> Result<R>,
) -> Result<R> {
    #[cfg(all(test, fbgemm_linked))]
    if super::guarded::is_on() {
        return work(&mut zeroed(len)?);
    }
    let line = 64 / size_of::<T>();
    let all = len.checked_add(line).ok_or(Error::OutOfMemory { bytes: usize::MAX })?;
    // Taken out meanwhile: an operation inside an operation gets a buffer of its own. So does one in the destructor of
    // another thread-local value, where this one may be gone.
    let mut buffer = slot.try_with(Cell::take).unwrap_or_default();
    if buffer.len() < all {
        drop(buffer);
        buffer = zeroed(all)?; // anew: there is nothing to copy over
    }
    let start = buffer.as_ptr().align_offset(64).min(line);
    let result = work(&mut buffer[start..start + len]);
    let _ = slot.try_with(|slot| slot.set(buffer));
    result
}

/// Gives this thread's buffers back.
pub(crate) fn release() {
    let _ = OPERATION.try_with(|slot| drop(slot.take()));
    let _ = INDICES.try_with(|slot| drop(slot.take()));
    let _ = CONVERSION.try_with(|slot| drop(slot.take()));
    let _ = SEQUENCE.try_with(|slot| drop(slot.take()));
}

/// The size of this thread's buffers in bytes.
pub(crate) fn bytes() -> usize {
    fn of<T: Zeroable>(slot: &'static LocalKey<Cell<Vec<T>>>) -> usize {
        let size = |slot: &Cell<Vec<T>>| {
            let buffer = slot.take();
            let bytes = buffer.capacity() * size_of::<T>();
            slot.set(buffer);
            bytes
        };
        slot.try_with(size).unwrap_or(0)
    }
    of(&OPERATION) + of(&INDICES) + of(&CONVERSION) + of(&SEQUENCE)
}

/// Numbers whose zero is all zero bytes.
///
/// # Safety
/// A type that implements this has no padding and no drop, and zero bytes are a valid value of it.
pub(crate) unsafe trait Zeroable: Copy {}

macro_rules! zeroable {
    ($($type:ty),*) => {$(
        // SAFETY: a plain number, whose zero is all zero bytes.
        unsafe impl Zeroable for $type {}
    )*};
}
zeroable!(f32, f64, i8, u8, i32, i64);
#[cfg(feature = "half")]
zeroable!(half::f16, half::bf16);

/// `len` zeros, in memory that the system hands out zeroed: unlike `vec![0; len]`, an error where there is none.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn zeroed<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    let layout = Layout::array::<T>(len).map_err(|_| Error::OutOfMemory { bytes: usize::MAX })?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not 0, and it is the one that a `Vec` of this capacity frees; all elements are
    // zero bytes, which `Zeroable` says are valid.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout).cast::<T>();
        if memory.is_null() {
            Err(Error::OutOfMemory { bytes: layout.size() })
        } else {
            Ok(Vec::from_raw_parts(memory, len, len))
        }
    }
}

/// The buffer's elements as bytes.
pub(crate) fn as_bytes(buffer: &mut [i32]) -> &mut [u8] {
    // SAFETY: any bytes are valid u8, and these are the buffer's own, as many as it has.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), size_of_val(buffer)) }
}

/// The buffer's elements as floats of the same bits.
pub(crate) fn as_floats(buffer: &mut [i32]) -> &mut [f32] {
    // SAFETY: f32 and i32 have one size and alignment, and any bits are valid for both.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), buffer.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Asks for buffers, one within the other, and writes to each while the inner ones are used.
    fn nested(lens: &[[usize; 3]], release_at: usize) -> Result<()> {
        let Some((lens, inner)) = lens.split_first() else { return Ok(()) };
        with_operation_buffers(*lens, |parts| {
            assert_eq!(parts.each_ref().map(|part| part.len()), *lens);
            assert!(parts[0].as_ptr().addr().is_multiple_of(64));
            let own = |part: usize| (inner.len() * 3 + part) as i32;
            let mut part = 0;
            let parts = parts.map(|memory| {
                memory.fill(own(part));
                part += 1;
                memory
            });
            if inner.len() == release_at {
                release();
            }
            nested(inner, release_at)?;
            for (part, memory) in parts.iter().enumerate() {
                assert!(memory.iter().all(|&x| x == own(part)), "someone else's writes");
            }
            as_bytes(parts[2]).fill(0x7f);
            assert!(as_floats(parts[2]).iter().all(|x| x.to_bits() == 0x7f7f_7f7f));
            Ok(())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parts_of_buffers_are_as_long_as_asked_for_and_never_shared(
            lens in prop::collection::vec([0usize..300, 0usize..300, 0usize..300], 1..5), release_at in 0usize..8,
        ) {
            nested(&lens, release_at).unwrap();
            let held = bytes();
            nested(&lens, 8).unwrap();
            prop_assert!(bytes() >= held.min(4));
            release();
            prop_assert_eq!(bytes(), 0);
        }
    }

    #[test]
    fn memory_that_there_is_not_is_an_error() {
        assert_eq!(zeroed::<f32>(usize::MAX).unwrap_err(), Error::OutOfMemory { bytes: usize::MAX });
        assert!(matches!(zeroed::<f32>(1 << 60), Err(Error::OutOfMemory { .. })));
        assert!(with_operation_buffers([usize::MAX], |_| Ok(())).is_err());
        assert!(with_operation_buffers([usize::MAX, 2], |_| Ok(())).is_err());
        assert_eq!(zeroed::<f64>(3).unwrap(), [0.0; 3]);
        assert!(zeroed::<u8>(0).unwrap().is_empty());
    }

    #[test]
    fn a_buffer_inside_a_buffer_is_another_one() {
        with_operation_buffers([10], |[outer]| {
            outer.fill(7);
            with_operation_buffers([4, 6], |[a, b]| {
                a.fill(8);
                b.fill(9);
                Ok(())
            })?;
            assert_eq!(outer, [7; 10]);
            Ok(())
        })
        .unwrap();
    }
}
