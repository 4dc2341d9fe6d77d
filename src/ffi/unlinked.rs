//! The same names where there is no FBGEMM: nothing here can be reached, as no `SupportedCpu` can be made.

use super::Params;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::isa::Isa;
use std::convert::Infallible;

fn refused<T>() -> Result<T> {
    Err(Error::UnsupportedTarget { target: library::TARGET.err().unwrap_or_default() })
}

pub(crate) mod library {
    use super::*;

    pub(crate) const TARGET: std::result::Result<(), &str> =
        Err(if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            "documentation (DOCS_RS)"
        } else if cfg!(target_arch = "aarch64") {
            "aarch64"
        } else {
            "a target without a provider"
        });

    pub(crate) fn supported_cpu() -> Result<bool> {
        refused()
    }

    pub(crate) fn instruction_set() -> Result<Isa> {
        refused()
    }
}

pub(crate) mod quantize {
    use super::*;

    pub(crate) fn choose(_: f32, _: f32, _: i32, _: i32) -> Result<Params> {
        refused()
    }

    pub(crate) fn to_i8(_: &[f32], _: &mut [i8], _: Params, _: SupportedCpu) -> Result<()> {
        refused()
    }

    pub(crate) fn to_u8(_: &[f32], _: &mut [u8], _: Params, _: SupportedCpu) -> Result<()> {
        refused()
    }
}

pub(crate) mod pytorch_math {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct PytorchMath(Infallible);

    impl PytorchMath {
        pub(crate) fn find(_: SupportedCpu) -> Result<Self> {
            refused()
        }

        pub(crate) fn sigmoid(self, _: &mut [f32]) -> Result<()> {
            match self.0 {}
        }

        pub(crate) fn tanh(self, _: &mut [f32]) -> Result<()> {
            match self.0 {}
        }
    }
}

pub(crate) mod embedding {
    use super::*;
    use crate::ffi::rows::Table;
    use crate::ffi::rows::sealed::{Float, Integer};

    pub(crate) const SLACK: usize = 0;

    pub(crate) fn memory_for(_: usize) -> Result<Vec<u8>> {
        refused()
    }

    pub(crate) fn pack(_: u32, _: usize, _: &[f32], _: &mut [u8], _: SupportedCpu) -> Result<()> {
        refused()
    }

    pub(crate) fn unpack(_: u32, _: usize, _: &[u8], _: &mut [f32], _: SupportedCpu) -> Result<()> {
        refused()
    }

    pub(crate) struct Kernels {
        dimension: usize,
    }

    impl Kernels {
        pub(crate) fn new(_: u32, dimension: usize) -> Self {
            Self { dimension }
        }

        pub(crate) fn dimension(&self) -> usize {
            self.dimension
        }

        pub(crate) fn bags<I: Integer, O: Integer, T: Float>(
            &self,
            _: &Table,
            _: &[I],
            _: &[O],
            _: Option<&[f32]>,
            _: &mut [T],
        ) -> Result<bool> {
            refused()
        }

        pub(crate) fn rows<I: Integer, T: Float>(&self, _: &Table, _: &[I], _: &mut [T]) -> Result<bool> {
            refused()
        }
    }
}

/// What no value of a packed matrix can be asked, as there is none.
macro_rules! never {
    ($name:ident, $element:ty, $($more:tt)*) => {
        pub(crate) struct $name(Infallible);

        impl $name {
            pub(crate) fn new(_: &[$element], _: usize, _: usize, _: SupportedCpu) -> Result<Self> {
                refused()
            }

            pub(crate) fn out_features(&self) -> usize {
                match self.0 {}
            }

            pub(crate) fn in_features(&self) -> usize {
                match self.0 {}
            }

            pub(crate) fn isa(&self) -> Isa {
                match self.0 {}
            }

            pub(crate) fn bytes(&self) -> usize {
                match self.0 {}
            }

            pub(crate) fn live() -> usize {
                0
            }

            pub(crate) fn unpack(&self) -> Result<Vec<$element>> {
                match self.0 {}
            }

            $($more)*
        }
    };
}

pub(crate) mod int8 {
    use super::*;

    #[allow(dead_code)]
    pub(crate) struct OutputStage<'a> {
        pub(crate) scales: &'a [f32],
        pub(crate) zero_points: &'a [i32],
        pub(crate) col_offsets: &'a [i32],
        pub(crate) bias: &'a [f32],
        pub(crate) relu: bool,
    }

    never! { PackedInt8, i8,
        pub(crate) fn pack_len(&self) -> usize {
            match self.0 {}
        }

        pub(crate) fn rows_at_once(&self, _: usize) -> usize {
            match self.0 {}
        }

        #[allow(clippy::too_many_arguments)]
        pub(crate) fn linear(
            &self,
            _: &[f32],
            _: Params,
            _: &OutputStage,
            _: &mut [f32],
            _: usize,
            _: impl FnOnce(&(dyn Fn(usize) + Sync)),
            _: SupportedCpu,
        ) -> Result<()> {
            match self.0 {}
        }

        pub(crate) fn multiply(&self, _: &[u8], _: &mut [i32], _: &mut [i32], _: SupportedCpu) -> Result<()> {
            match self.0 {}
        }

        #[allow(clippy::too_many_arguments)]
        pub(crate) fn linear_static(
            &self,
            _: &[u8],
            _: i32,
            _: &OutputStage,
            _: bool,
            _: impl Fn(f32) -> (f32, f32),
            _: &mut [u8],
            _: i32,
            _: SupportedCpu,
        ) -> Result<()> {
            match self.0 {}
        }

        #[cfg(feature = "profile")]
        pub(crate) fn quantize_input(&self, _: &[f32], _: Params, _: SupportedCpu) -> Result<()> {
            match self.0 {}
        }
    }
}

pub(crate) mod fp16 {
    use super::*;

    pub(crate) const BLOCK_ROWS: usize = 120;

    never! { PackedFp16, f32,
        pub(crate) fn linear(
            &self,
            _: &[f32],
            _: &mut [f32],
            _: usize,
            _: impl FnOnce(&(dyn Fn(usize) + Sync)),
            _: SupportedCpu,
        ) -> Result<()> {
            match self.0 {}
        }
    }
}
