//! FBGEMM's calls, on slices and plain numbers: nothing here knows a scheme, a weight or a layer.
//!
//! One Rust and one C++ file for each family of operators. With the fp32 product of the crate `gemm`, the threads'
//! buffers and the outputs that tasks share, all of the crate's `unsafe` is on this floor, but for one call in
//! `crate::cpu`. Each function checks what its C++ relies on, and panics where its own caller, which has refused such
//! arguments with an error, is wrong.

pub(crate) mod gemm;
pub(crate) mod rows;
pub(crate) mod scratch;
pub(crate) mod tasks;

#[cfg(fbgemm_linked)]
pub(crate) mod embedding;
#[cfg(fbgemm_linked)]
pub(crate) mod fp16;
#[cfg(all(test, fbgemm_linked))]
pub(crate) mod guarded;
#[cfg(fbgemm_linked)]
pub(crate) mod int8;
#[cfg(fbgemm_linked)]
pub(crate) mod library;
#[cfg(fbgemm_linked)]
pub(crate) mod pytorch_math;
#[cfg(fbgemm_linked)]
pub(crate) mod quantize;
#[cfg(fbgemm_linked)]
mod types;

#[cfg(not(fbgemm_linked))]
mod unlinked;
#[cfg(not(fbgemm_linked))]
pub(crate) use unlinked::{embedding, fp16, int8, library, pytorch_math, quantize};

use crate::error::{Error, Result};

/// The most elements that FBGEMM addresses in one matrix: its indices have 32 bits.
pub(crate) const MAX_ELEMENTS: usize = i32::MAX as usize;

/// What the numbers of a quantized tensor stand for: `real = scale * (q - zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Params {
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
}

/// Checks a weight's dimensions and its number of elements; `padded` are the rows and columns that a kernel makes of
/// them, `None` being too many.
fn check_padded(
    what: &'static str,
    given: usize,
    out_features: usize,
    in_features: usize,
    padded: Option<(usize, usize)>,
) -> Result<()> {
    for (what, size) in [("out_features", out_features), ("in_features", in_features)] {
        if size == 0 {
            return Err(Error::ZeroDimension { what });
        }
    }
    let elements = padded.and_then(|(rows, columns)| rows.checked_mul(columns));
    if elements.is_none_or(|elements| elements > MAX_ELEMENTS) {
        return Err(Error::TooLarge { what, rows: out_features, columns: in_features, limit: MAX_ELEMENTS });
    }
    let expected = out_features * in_features;
    if given == expected { Ok(()) } else { Err(Error::WrongLength { what, given, expected }) }
}

/// Checks the shape of an int8 weight: no dimension 0, the length right, and, padded as any CPU's kernels pad it, within
/// FBGEMM's addressing. The bound is the same everywhere, so that a model that loads here loads on every CPU.
pub(crate) fn check_int8_shape(
    what: &'static str,
    given: usize,
    out_features: usize,
    in_features: usize,
) -> Result<()> {
    /// FBGEMM's widest block, over all its x86 kernels.
    const ROWS: usize = 48;
    let padded = (out_features.checked_next_multiple_of(ROWS))
        // Blocks of at least 128 are each padded by at most 4.
        .zip(in_features.checked_add(in_features / 32 + 4));
    check_padded(what, given, out_features, in_features, padded)
}

/// Checks the shape of an fp16 weight, as [`check_int8_shape`].
pub(crate) fn check_fp16_shape(
    what: &'static str,
    given: usize,
    out_features: usize,
    in_features: usize,
) -> Result<()> {
    /// FBGEMM's blocks: 512 rows of its matrix, which is ours transposed, and 16 or 32 columns.
    const BLOCK: (usize, usize) = (32, 512);
    let padded = out_features.checked_next_multiple_of(BLOCK.0).zip(in_features.checked_next_multiple_of(BLOCK.1));
    check_padded(what, given, out_features, in_features, padded)
}

/// A size as FBGEMM counts.
#[cfg(fbgemm_linked)]
fn dimension(size: usize) -> i32 {
    i32::try_from(size).expect("sizes beyond FBGEMM's 32-bit addressing were refused with an error")
}

#[cfg(test)]
/// This test program again, for one test in a process of its own.
fn alone(test: &str, shell: &str) {
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
}

#[cfg(test)]
/// `ulimit`'s words for so many KiB beyond the files that this program has mapped: libtorch is half a GB, a static FBGEMM
/// next to nothing.
fn memory_beside_libraries(kib: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let size = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let address = |digits| u64::from_str_radix(digits, 16).ok();
        line.contains(" /").then_some(address(to)? - address(from)?)
    };
    let mapped: u64 = maps.lines().filter_map(size).sum();
    format!("ulimit -v {};", kib + mapped / 1024)
}
