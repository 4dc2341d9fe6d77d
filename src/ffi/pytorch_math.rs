//! PyTorch's own sigmoid and tanh, which libtorch_cpu.so has beside FBGEMM: Sleef's `expf` and MKL's `vmsTanh`.

use super::types::failed;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: `find_pytorch_math` takes no argument, and may be called at any time; the others, which rely on more, are
    // unsafe.
    unsafe extern "C++" {
        include!("fbgemm/include/pytorch_math.h");

        fn find_pytorch_math() -> Result<String>;
        /// Unsafe: `find_pytorch_math` has found all, and `values` has n elements.
        unsafe fn pytorch_sigmoid(values: *mut f32, n: usize) -> Result<()>;
        /// Unsafe: as `pytorch_sigmoid`.
        unsafe fn pytorch_tanh(values: *mut f32, n: usize) -> Result<()>;
    }
}

/// Proof that the functions are there: [`find`](Self::find) alone makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PytorchMath(());

impl PytorchMath {
    /// # Errors
    /// [`Error::NoPytorchMath`] where this build's FBGEMM is not inside a libtorch that has them.
    pub(crate) fn find(_: SupportedCpu) -> Result<Self> {
        const PROVIDER: &str = env!("FBGEMM_RS_PROVIDER");
        if PROVIDER == "prefix" {
            // Its FBGEMM is no part of a libtorch, even if the program has one besides.
            return Err(Error::NoPytorchMath { provider: PROVIDER, missing: "PyTorch itself".to_string() });
        }
        match bridge::find_pytorch_math().map_err(failed("dlsym"))? {
            missing if missing.is_empty() => Ok(Self(())),
            missing => Err(Error::NoPytorchMath { provider: PROVIDER, missing }),
        }
    }

    /// Each value's sigmoid, in place, as ATen computes one row: in blocks of two vectors, and the rest of the row by the
    /// C library's `expf`.
    pub(crate) fn sigmoid(self, row: &mut [f32]) -> Result<()> {
        // SAFETY: `self` is proof that `find_pytorch_math` found all, and the pointer and length are a slice's.
        unsafe { bridge::pytorch_sigmoid(row.as_mut_ptr(), row.len()) }.map_err(failed("Sleef_expf"))
    }

    /// Each value's tanh, in place.
    pub(crate) fn tanh(self, values: &mut [f32]) -> Result<()> {
        // SAFETY: as in `sigmoid`.
        unsafe { bridge::pytorch_tanh(values.as_mut_ptr(), values.len()) }.map_err(failed("vmsTanh"))
    }
}
