//! The instruction sets that FBGEMM has kernels for.

/// The instruction set that FBGEMM's kernels use in this process: the best that the CPU has, unless the variable
/// `FBGEMM_ENABLE_INSTRUCTIONS` (`AVX2`, `AVX512`, `AVX512_E1`, `AVX512_256`, `AVX512_E1_256`), which FBGEMM reads
/// once, names a smaller one.
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
