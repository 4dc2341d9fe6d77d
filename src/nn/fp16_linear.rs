//! A linear layer with its weight in fp16.

use super::by_parts::by_parts;
use super::forms::{forms, suggested_tasks};
use crate::error::Result;
use crate::ffi::fp16::BLOCK_ROWS;
use crate::ffi::scratch::zeroed;
use crate::ffi::tasks::by_rows;
use crate::isa::Isa;
use crate::ops::lengths::{check_bias, check_lengths, check_size, new_output, rows};
use crate::ops::linear_fp16;
use crate::ops::packed::{PackedMatrixFp16, pack_matrix_fp16};
use crate::quant::element::Element;
use std::sync::Arc;

/// A linear layer with its weight in fp16, packed for the CPU it runs on: half of fp32's memory, and an error of some
/// 0.0003, where int8's is too large. `Send + Sync`; a clone shares the weight.
///
/// ```
/// let layer = fbgemm::Fp16Linear::new(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], Some(vec![0.25, 0.0]), 2, 3)?;
/// assert_eq!(layer.forward::<f32>(&[1.0, 2.0, 3.0])?, [-0.5, 0.0]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[derive(Clone)]
pub struct Fp16Linear {
    shared: Arc<Shared>,
}

struct Shared {
    packed: PackedMatrixFp16,
    bias: Option<Vec<f32>>,
}

impl Fp16Linear {
    /// From an fp32 layer: `weight` row-major, `out_features` rows of `in_features`; `bias` of `out_features`, or `None`.
    ///
    /// # Errors
    /// Those of [`pack_matrix_fp16`]; [`Error::WrongLength`](crate::Error::WrongLength) for the bias.
    pub fn new(weight: &[f32], bias: Option<Vec<f32>>, out_features: usize, in_features: usize) -> Result<Self> {
        check_bias(bias.as_deref(), out_features)?;
        Self::from_packed(pack_matrix_fp16(weight, out_features, in_features)?, bias)
    }

    /// From a packed weight.
    ///
    /// # Errors
    /// [`Error::WrongLength`](crate::Error::WrongLength) for the bias.
    pub(crate) fn from_packed(packed: PackedMatrixFp16, bias: Option<Vec<f32>>) -> Result<Self> {
        check_bias(bias.as_deref(), packed.out_features())?;
        Ok(Self { shared: Arc::new(Shared { packed, bias }) })
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        self.shared.packed.out_features()
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        self.shared.packed.in_features()
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.shared.bias.as_deref()
    }

    /// The weight as it was rounded, `out_features` rows of `in_features`.
    ///
    /// # Errors
    /// As [`PackedMatrixFp16::unpack`].
    pub fn weight(&self) -> Result<Vec<f32>> {
        self.shared.packed.unpack()
    }

    /// What the layer holds in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.shared.packed.bytes() + size_of::<f32>() * self.bias().map_or(0, <[f32]>::len) + size_of::<Shared>()
    }

    /// The number of rows that parts of an input have to be a multiple of, for the bits of the whole: with 512-bit registers
    /// a row's do not depend on others.
    pub(super) fn rows_of_parts(&self) -> usize {
        if matches!(self.shared.packed.isa(), Isa::Avx512 | Isa::Avx512Vnni) { 1 } else { BLOCK_ROWS }
    }

    /// The suggested number of tasks for a call with this many rows on up to `threads` threads.
    pub fn suggested_tasks(&self, rows: usize, threads: usize) -> usize {
        let weight = self.out_features() * self.in_features();
        suggested_tasks(2 * weight, weight.saturating_mul(rows), 40, threads)
    }

    forms!("Those of [`linear_fp16_weight`](crate::linear_fp16_weight).");

    /// The bits are the same for any number of tasks: FBGEMM splits the columns, and rows of other types than `f32` are
    /// split only where FBGEMM splits them itself.
    fn run<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        let Shared { packed, bias } = &*self.shared;
        let bias = bias.as_deref();
        if let (Some(input), Some(output)) = (T::as_f32(input), T::as_f32_mut(output)) {
            return linear_fp16::run(input, packed, bias, output, tasks, execute);
        }
        let shape @ (n, k) = (self.out_features(), self.in_features());
        check_lengths(bias, output, rows(input.len(), n, k)?, n)?;
        by_rows(output, n, BLOCK_ROWS, tasks, execute, |rows, output| {
            by_parts(&input[rows.start * k..rows.end * k], output, shape, BLOCK_ROWS, |x, y| {
                linear_fp16::run(x, packed, bias, y, 1, |task| task(0))
            })
        })
    }
}

/// With the feature `serde`: stored as the plain weight, widened to float, which packing rounds to the same again.
#[cfg(feature = "serde")]
mod stored {
    use super::Fp16Linear;
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Error as _, Serialize, Serializer};

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stored {
        version: u32,
        out_features: usize,
        in_features: usize,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    }

    impl Serialize for Fp16Linear {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let stored = Stored {
                version: 1,
                out_features: self.out_features(),
                in_features: self.in_features(),
                weight: self.weight().map_err(S::Error::custom)?,
                bias: self.bias().map(<[f32]>::to_vec),
            };
            stored.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Fp16Linear {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let s = Stored::deserialize(deserializer)?;
            if s.version != 1 {
                return Err(D::Error::custom(format!("the layer has layout version {}, expected 1", s.version)));
            }
            Self::new(&s.weight, s.bias, s.out_features, s.in_features).map_err(D::Error::custom)
        }
    }
}

impl std::fmt::Debug for Fp16Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fp16Linear")
            .field("out_features", &self.out_features())
            .field("in_features", &self.in_features())
            .field("bias", &self.shared.bias.is_some())
            .finish_non_exhaustive()
    }
}
