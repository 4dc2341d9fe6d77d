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

/// Runs `work` with this thread's buffer for operations: `len` elements of any content, aligned to a cache line as
/// FBGEMM's own buffers are.
///
/// # Errors
/// [`Error::OutOfMemory`], and those of `work`.
pub(crate) fn with_operation_buffer<R>(len: usize, work: impl FnOnce(&mut [i32]) -> Result<R>) -> Result<R> {
    with_buffer(&OPERATION, len, work)
}

/// [`with_operation_buffer`], for inputs and outputs converted: an operation may run meanwhile.
pub(crate) fn with_conversion_buffer<R>(len: usize, work: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    with_buffer(&CONVERSION, len, work)
}

/// [`with_operation_buffer`], for a recurrent layer's gates: conversions and operations may run meanwhile.
pub(crate) fn with_sequence_buffer<R>(len: usize, work: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    with_buffer(&SEQUENCE, len, work)
}

/// [`with_operation_buffer`], for indices and offsets.
pub(crate) fn with_index_buffer<R>(len: usize, work: impl FnOnce(&mut [i64]) -> Result<R>) -> Result<R> {
    with_buffer(&INDICES, len, work)
}

fn with_buffer<T: Zeroable, R>(
    slot: &'static LocalKey<Cell<Vec<T>>>,
    len: usize,
    work: impl FnOnce(&mut [T]) -> Result<R>,
) -> Result<R> {
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

    #[test]
    fn memory_that_there_is_not_is_an_error() {
        assert_eq!(zeroed::<f32>(usize::MAX).unwrap_err(), Error::OutOfMemory { bytes: usize::MAX });
        assert!(matches!(zeroed::<f32>(1 << 60), Err(Error::OutOfMemory { .. })));
        assert!(with_operation_buffer(usize::MAX, |_| Ok(())).is_err());
        assert_eq!(zeroed::<f64>(3).unwrap(), [0.0; 3]);
        assert!(zeroed::<u8>(0).unwrap().is_empty());
    }

    #[test]
    fn a_buffer_inside_a_buffer_is_another_one() {
        with_operation_buffer(10, |outer| {
            outer.fill(7);
            with_operation_buffer(10, |inner| {
                inner.fill(8);
                Ok(())
            })?;
            assert_eq!(outer, [7; 10]);
            Ok(())
        })
        .unwrap();
    }
}
