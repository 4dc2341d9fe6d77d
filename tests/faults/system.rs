//! Functions of the C library, with faults: an allocation that fails, reads and writes that are interrupted or short; and
//! processes that are forked.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};

thread_local! {
    /// `const` and without a destructor, so that asking allocates nothing.
    static FAULTS: Cell<Faults> = const { Cell::new(Faults { allocation: None, allocations: 0, transfers: None }) };
}

/// What goes wrong on this thread.
#[derive(Clone, Copy)]
struct Faults {
    /// The number of the allocation that fails, and where its size is told.
    allocation: Option<(usize, *mut usize)>,
    allocations: usize,
    /// How many reads and writes there were, while they fail.
    transfers: Option<usize>,
}

/// Runs `work`; its `number`th allocation fails (no one: `usize::MAX`). Gives how many there were. The size of the one
/// that failed is written to `failed`.
pub fn failing_allocation<R>(number: usize, failed: *mut usize, work: impl FnOnce() -> R) -> (R, usize) {
    FAULTS.set(Faults { allocation: Some((number, failed)), allocations: 0, transfers: None });
    let result = work();
    let count = FAULTS.get().allocations;
    FAULTS.set(Faults { allocation: None, allocations: 0, transfers: None });
    (result, count)
}

/// Runs `work` with every third read and write interrupted by a signal, and the others giving or taking few bytes. Gives
/// how many there were.
pub fn broken_transfers<R>(work: impl FnOnce() -> R) -> (R, usize) {
    FAULTS.set(Faults { allocation: None, allocations: 0, transfers: Some(0) });
    let result = work();
    let count = FAULTS.get().transfers.unwrap_or_default();
    FAULTS.set(Faults { allocation: None, allocations: 0, transfers: None });
    (result, count)
}

/// Whether this allocation is the one that fails.
fn fails(bytes: usize) -> bool {
    let mut faults = FAULTS.get();
    let Some((number, failed)) = faults.allocation else { return false };
    faults.allocations += 1;
    FAULTS.set(faults);
    if faults.allocations == number {
        // SAFETY: the caller of `failing_allocation` gave a place for a number that lives as long as its work runs.
        unsafe { failed.write(bytes) };
    }
    faults.allocations == number
}

/// How many bytes of so many are transferred now; none: it is interrupted.
fn transferred(bytes: usize) -> Option<usize> {
    let mut faults = FAULTS.get();
    let Some(count) = faults.transfers else { return Some(bytes) };
    faults.transfers = Some(count + 1);
    FAULTS.set(faults);
    // A quarter of large ones, so that files of some megabytes are read in time.
    if count % 3 == 2 { None } else { Some(bytes.div_ceil(4).max(1).min(bytes)) }
}

/// What glibc's own functions are called beneath the public names, and what has none.
mod glibc {
    use super::*;
    unsafe extern "C" {
        pub fn __libc_malloc(size: usize) -> *mut c_void;
        pub fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
        pub fn __libc_realloc(memory: *mut c_void, size: usize) -> *mut c_void;
        pub fn __libc_memalign(alignment: usize, size: usize) -> *mut c_void;
        pub fn __errno_location() -> *mut c_int;
        pub fn syscall(number: c_long, ...) -> c_long;
        pub fn fork() -> c_int;
        pub fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
        pub fn kill(process: c_int, signal: c_int) -> c_int;
        pub fn _exit(code: c_int) -> !;
    }
}
const READ: c_long = 0;
const WRITE: c_long = 1;
const PREAD: c_long = 17;
const PWRITE: c_long = 18;
const INTERRUPTED: c_int = 4;
const OUT_OF_MEMORY: c_int = 12;

/// Calls the system for a transfer, as much of it as there is to be.
///
/// # Safety
/// As the C library's functions of this number.
unsafe fn transfer(number: c_long, file: c_int, memory: *mut c_void, bytes: usize, offset: i64) -> isize {
    match transferred(bytes) {
        // SAFETY: passed on as it came, less bytes at the end.
        Some(bytes) => unsafe { glibc::syscall(number, c_long::from(file), memory, bytes, offset) as isize },
        None => {
            // SAFETY: the place of this thread's own error number.
            unsafe { glibc::__errno_location().write(INTERRUPTED) };
            -1
        }
    }
}

macro_rules! in_place_of_the_c_library {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {$(
        /// In place of the C library's.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            // SAFETY: passed on as it came.
            unsafe { $body }
        }
    )*};
}
in_place_of_the_c_library! {
    malloc(size: usize) -> *mut c_void {
        if fails(size) { std::ptr::null_mut() } else { glibc::__libc_malloc(size) }
    }
    calloc(n: usize, size: usize) -> *mut c_void {
        if fails(n.saturating_mul(size)) { std::ptr::null_mut() } else { glibc::__libc_calloc(n, size) }
    }
    realloc(memory: *mut c_void, size: usize) -> *mut c_void {
        if fails(size) { std::ptr::null_mut() } else { glibc::__libc_realloc(memory, size) }
    }
    aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
        if fails(size) { std::ptr::null_mut() } else { glibc::__libc_memalign(alignment, size) }
    }
    posix_memalign(memory: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
        if fails(size) {
            return OUT_OF_MEMORY;
        }
        *memory = glibc::__libc_memalign(alignment, size);
        if (*memory).is_null() { OUT_OF_MEMORY } else { 0 }
    }
    read(file: c_int, memory: *mut c_void, bytes: usize) -> isize { transfer(READ, file, memory, bytes, 0) }
    write(file: c_int, memory: *mut c_void, bytes: usize) -> isize { transfer(WRITE, file, memory, bytes, 0) }
    pread64(file: c_int, memory: *mut c_void, bytes: usize, offset: i64) -> isize {
        transfer(PREAD, file, memory, bytes, offset)
    }
    pwrite64(file: c_int, memory: *mut c_void, bytes: usize, offset: i64) -> isize {
        transfer(PWRITE, file, memory, bytes, offset)
    }
}

/// How a process ended.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum End {
    Code(c_int),
    Signal(c_int),
}

/// A process that is this one's copy, with this thread alone.
pub struct Fork(c_int);

impl Fork {
    /// Runs `work` in it, and ends it with the code that `work` gives; where it panics, with 101.
    pub fn run(work: impl FnOnce() -> c_int) -> Self {
        // SAFETY: the child has this thread alone, and the C library sees to its own locks. It leaves by `_exit`.
        match unsafe { glibc::fork() } {
            0 => {
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
                // SAFETY: ends this process and nothing else.
                unsafe { glibc::_exit(code) }
            }
            child => {
                assert!(child > 0, "no process could be forked");
                Self(child)
            }
        }
    }

    pub fn kill(&self) {
        // SAFETY: a child that has not been waited for.
        unsafe { glibc::kill(self.0, 9) };
    }

    pub fn wait(self) -> End {
        let mut status = 0;
        // SAFETY: a child that has not been waited for, and a place for its status.
        assert_eq!(unsafe { glibc::waitpid(self.0, &mut status, 0) }, self.0);
        if status & 0x7f == 0 { End::Code(status >> 8 & 0xff) } else { End::Signal(status & 0x7f) }
    }
}

/// A number that processes forked from this one share with it.
pub struct Shared(*mut usize);

impl Shared {
    pub fn new() -> Self {
        const MMAP: c_long = 9;
        let (read_write, shared_anonymous) = (1 | 2, 1 | 0x20);
        // SAFETY: a new mapping.
        let memory = unsafe { glibc::syscall(MMAP, 0usize, 4096usize, read_write, shared_anonymous, -1, 0usize) };
        assert_ne!(memory, -1);
        Self(memory as *mut usize)
    }

    pub fn place(&self) -> *mut usize {
        self.0
    }

    pub fn get(&self) -> usize {
        // SAFETY: the mapping that `new` made, which stays.
        unsafe { self.0.read_volatile() }
    }

    pub fn set(&self, value: usize) {
        // SAFETY: as above.
        unsafe { self.0.write_volatile(value) };
    }
}
