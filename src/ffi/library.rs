//! What FBGEMM's library says of itself and of the CPU.

use super::types::{failed, inst_set_t};
use crate::error::{Error, Result};
use crate::isa::Isa;

/// Whether this build has FBGEMM, or what it was made for instead.
pub(crate) const TARGET: std::result::Result<(), &str> = Ok(());

#[cxx::bridge(namespace = "fbgemm_rs")]
mod bridge {
    // SAFETY: each takes no argument, and may be called at any time on any CPU, but for the one that says otherwise.
    unsafe extern "C++" {
        include!("fbgemm/include/library.h");

        #[namespace = "fbgemm"]
        #[cxx_name = "inst_set_t"]
        type InstructionSet = super::inst_set_t;

        fn supported_cpu() -> Result<bool>;
        fn instruction_set() -> Result<InstructionSet>;
        fn library_path() -> Result<String>;
        fn own_path() -> Result<String>;
        #[allow(dead_code)] // only a test asks for it
        fn throw_unusual() -> Result<()>;
        /// # Safety
        ///
        /// No other thread may use FBGEMM meanwhile, which reads this without a lock.
        #[allow(dead_code)] // only a test asks for it
        unsafe fn force_instruction_set(isa: InstructionSet) -> Result<()>;
    }
}

/// Whether FBGEMM supports this CPU; to be asked before anything else.
pub(crate) fn supported_cpu() -> Result<bool> {
    bridge::supported_cpu().map_err(failed("fbgemmSupportedCPU"))
}

/// The instruction set that FBGEMM uses now.
pub(crate) fn instruction_set() -> Result<Isa> {
    Ok(match bridge::instruction_set().map_err(failed("fbgemmInstructionSet"))? {
        inst_set_t::avx2 => Isa::Avx2,
        inst_set_t::avx512 => Isa::Avx512,
        inst_set_t::avx512_ymm => Isa::Avx512Ymm,
        inst_set_t::avx512_vnni => Isa::Avx512Vnni,
        inst_set_t::avx512_vnni_ymm => Isa::Avx512VnniYmm,
        other => return Err(Error::UnknownInstructionSet { given: other.0 }),
    })
}

/// The file that FBGEMM's code was loaded from.
pub(crate) fn library_path() -> Result<String> {
    bridge::library_path().map_err(failed("dladdr"))
}

/// The file that this crate was loaded from.
pub(crate) fn own_path() -> Result<String> {
    bridge::own_path().map_err(failed("dladdr"))
}

/// Has FBGEMM use AVX2 from now on, as another user of it in the process could.
///
/// # Safety
///
/// No other thread uses FBGEMM meanwhile.
#[cfg(test)]
pub(crate) unsafe fn use_avx2() {
    // SAFETY: the caller's.
    unsafe { bridge::force_instruction_set(inst_set_t::avx2) }.unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_that_is_no_std_exception_is_an_error() {
        let error = bridge::throw_unusual().map_err(failed("throw")).unwrap_err();
        assert_eq!(error.to_string(), "FBGEMM failed in throw: a C++ exception that is not a std::exception");
    }
}
