//! Running code compiled for the widest vectors that this CPU has, by the crate `pulp`.
//!
//! Most kernels are plain Rust in lanes of a fixed number, with fused multiply-adds by name, of which the compiler
//! makes vectors; products of matrices name theirs. Either way the order of all sums is fixed, so that the bits are the
//! same for every width.

pub(crate) use pulp::{Simd, WithSimd as Wide};

/// Runs `work` compiled for AVX-512 or AVX2 where the CPU has them, as far as the compiler inlines it: functions that
/// `work` calls need `#[inline(always)]`.
#[inline(always)]
pub(crate) fn wide<W: Wide>(work: W) -> W::Output {
    pulp::Arch::new().dispatch(work)
}

/// Work that names no vectors: a closure that is `#[inline(always)]`. `FnMut`, as what calls a `FnOnce` by value is a
/// function of its own, which the compiler may not inline.
pub(crate) struct Any<F>(pub(crate) F);

impl<R, F: FnMut() -> R> Wide for Any<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        let mut work = self.0;
        work()
    }
}
