//! Which CPUs FBGEMM supports, and the instruction set it uses on this one.

use crate::ffi;
use crate::{Error, Result};
use std::sync::OnceLock;

/// The instruction set that FBGEMM's kernels use in this process: the best that the CPU has, unless the variable
/// `FBGEMM_ENABLE_INSTRUCTIONS` (`AVX2`, `AVX512`, `AVX512_E1`, `AVX512_256`, `AVX512_E1_256`), which FBGEMM reads
/// once, names a lesser one.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX2.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX-512 with 256-bit registers only.
    Avx512Ymm,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and 256-bit registers only.
    Avx512VnniYmm,
}

impl Isa {
    /// Whether pairs of products are summed exactly. Without VNNI (`false`), FBGEMM's kernels clamp each sum of
    /// two neighbouring products to 16 bits, so that large weights times large inputs give another answer than on
    /// a CPU with VNNI; so does PyTorch.
    pub fn sums_pairs_exactly(self) -> bool {
        matches!(self, Isa::Avx512Vnni | Isa::Avx512VnniYmm)
    }

    /// The value of `FBGEMM_ENABLE_INSTRUCTIONS` that limits FBGEMM to this instruction set.
    pub fn variable(self) -> &'static str {
        match self {
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX512",
            Isa::Avx512Ymm => "AVX512_256",
            Isa::Avx512Vnni => "AVX512_E1",
            Isa::Avx512VnniYmm => "AVX512_E1_256",
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Ymm => "AVX-512 (256-bit)",
            Isa::Avx512Vnni => "AVX-512 VNNI",
            Isa::Avx512VnniYmm => "AVX-512 VNNI (256-bit)",
        })
    }
}

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
/// without AVX2 or FMA.
pub fn cpu_support() -> Result<Isa> {
    static CHECKED: OnceLock<Result<()>> = OnceLock::new();
    CHECKED.get_or_init(check).clone()?;
    // Not remembered: something else in the process can still make FBGEMM choose another one.
    ffi::instruction_set()
}

#[cfg(fbgemm_linked)]
fn check() -> Result<()> {
    // Asked before FBGEMM is: its own answer says no more than no.
    let has = [("AVX2", is_x86_feature_detected!("avx2")), ("FMA", is_x86_feature_detected!("fma"))];
    if let Some((missing, _)) = has.iter().find(|(_, has)| !has) {
        return Err(Error::UnsupportedCpu { missing });
    }
    if ffi::supported_cpu()? { Ok(()) } else { Err(Error::UnsupportedCpu { missing: "what its cpuinfo asks for" }) }
}

#[cfg(not(fbgemm_linked))]
fn check() -> Result<()> {
    const TARGET: &str = if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        "documentation (DOCS_RS)"
    } else if cfg!(target_arch = "aarch64") {
        "aarch64"
    } else {
        "a target without a provider"
    };
    Err(Error::UnsupportedTarget { target: TARGET })
}
