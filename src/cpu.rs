//! Whether FBGEMM supports this CPU, and the proof of it that every call into FBGEMM asks for.

use crate::error::{Error, Result};
use crate::ffi::library;
use crate::isa::Isa;
use std::sync::OnceLock;

/// The instruction set that FBGEMM uses here, or why it can't run. Every operation asks this first, so a service
/// calls it once at start to fail early.
///
/// ```
/// let isa = fbgemm::cpu_support()?;
/// println!("FBGEMM runs on {isa}");
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// [`Error::UnsupportedTarget`] where the crate was built without FBGEMM, [`Error::UnsupportedCpu`] on a CPU
/// without AVX2 or FMA, [`Error::UnknownCpu`] where there is no `/proc`.
pub fn cpu_support() -> Result<Isa> {
    SupportedCpu::get().map(SupportedCpu::isa)
}

/// Proof that FBGEMM supports this CPU, which therefore has AVX2 and FMA: [`get`](Self::get) alone makes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SupportedCpu {
    isa: Isa,
}

impl SupportedCpu {
    pub(crate) fn get() -> Result<Self> {
        static MISSING: OnceLock<Option<Missing>> = OnceLock::new();
        if let Err(target) = library::TARGET {
            return Err(Error::UnsupportedTarget { target });
        }
        match *MISSING.get_or_init(missing) {
            Some(Missing::Feature(missing)) => return Err(Error::UnsupportedCpu { missing }),
            Some(Missing::File(path)) => return Err(Error::UnknownCpu { path }),
            None => {}
        }
        // Not remembered: something else in the process can still make FBGEMM choose another one.
        Ok(Self { isa: library::instruction_set()? })
    }

    /// The instruction set that FBGEMM uses now.
    pub(crate) fn isa(self) -> Isa {
        self.isa
    }

    /// Runs `work` compiled for AVX2 and FMA, as far as the compiler inlines it.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(crate) fn with_avx2<R>(self, work: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn wide<R>(work: impl FnOnce() -> R) -> R {
                work()
            }
            // SAFETY: a `SupportedCpu` is made by `get` alone, which has seen that the CPU has AVX2 and FMA.
            unsafe { wide(work) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        work()
    }
}

/// Why FBGEMM can't run here.
#[derive(Debug, Clone, Copy)]
enum Missing {
    Feature(&'static str),
    File(&'static str),
}

/// The first of what FBGEMM needs that is not here.
fn missing() -> Option<Missing> {
    // Asked before FBGEMM is: its own answer says no more than no.
    #[cfg(target_arch = "x86_64")]
    for (name, has) in [("AVX2", is_x86_feature_detected!("avx2")), ("FMA", is_x86_feature_detected!("fma"))] {
        if !has {
            return Some(Missing::Feature(name));
        }
    }
    const READ_BY_CPUINFO: &str = "/proc/cpuinfo";
    match library::supported_cpu() {
        Ok(true) => None,
        _ if std::fs::File::open(READ_BY_CPUINFO).is_err() => Some(Missing::File(READ_BY_CPUINFO)),
        _ => Some(Missing::Feature("what its cpuinfo asks for")),
    }
}
