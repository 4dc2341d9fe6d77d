//! A linear layer in fp32, by the crate `gemm`.

use super::by_parts::by_parts;
use super::forms::{forms, suggested_tasks};
use crate::error::Result;
use crate::ffi::check_int8_shape;
use crate::ffi::gemm::multiply_add;
use crate::ffi::scratch::zeroed;
use crate::ffi::tasks::by_rows;
use crate::ops::lengths::{check_bias, check_lengths, check_size, new_output, rows};
use crate::quant::element::Element;

/// A linear layer in fp32.
#[derive(Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "StoredFloat"))]
pub struct FloatLinear {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
}

/// A [`FloatLinear`] that is yet to be checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFloat {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
}

#[cfg(feature = "serde")]
impl TryFrom<StoredFloat> for FloatLinear {
    type Error = crate::error::Error;

    fn try_from(stored: StoredFloat) -> Result<Self> {
        Self::new(stored.weight, stored.bias, stored.out_features, stored.in_features)
    }
}

impl FloatLinear {
    /// `weight` is row-major, `out_features` rows of `in_features`, as PyTorch's `nn.Linear.weight`; `bias` has
    /// `out_features` values, or is `None`.
    ///
    /// # Errors
    /// [`Error::ZeroDimension`](crate::Error::ZeroDimension), [`Error::WrongLength`](crate::Error::WrongLength),
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, out_features: usize, in_features: usize) -> Result<Self> {
        check_int8_shape("weight", weight.len(), out_features, in_features)?;
        check_bias(bias.as_deref(), out_features)?;
        Ok(Self { weight, bias, out_features, in_features })
    }

    /// The weight, `out_features` rows of `in_features`.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// What the layer holds in memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<f32>() * (self.weight.len() + self.bias.as_ref().map_or(0, Vec::len))
    }

    /// The suggested number of tasks for a call with this many rows on up to `threads` threads.
    pub fn suggested_tasks(&self, rows: usize, threads: usize) -> usize {
        let weight = self.weight.len();
        suggested_tasks(4 * weight, weight.saturating_mul(rows), 40, threads)
    }

    forms!("[`Error::PartialRow`](crate::Error::PartialRow), [`Error::TooLarge`](crate::Error::TooLarge).");

    /// The last bits can depend on the number of rows and of tasks: the crate `gemm` adds up in an order that it chooses
    /// for the size.
    fn run<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        let shape @ (n, k) = (self.out_features, self.in_features);
        check_lengths(self.bias.as_deref(), output, rows(input.len(), n, k)?, n)?;
        by_rows(output, n, 1, tasks, execute, |rows, output| {
            let input = &input[rows.start * k..rows.end * k];
            match (T::as_f32(input), T::as_f32_mut(output)) {
                (Some(input), Some(output)) => self.multiply(input, output),
                _ => {
                    return by_parts(input, output, shape, 1, |x, y| {
                        self.multiply(x, y);
                        Ok(())
                    });
                }
            }
            Ok(())
        })
    }

    fn multiply(&self, input: &[f32], output: &mut [f32]) {
        if let Some(bias) = &self.bias {
            output.chunks_exact_mut(self.out_features).for_each(|row| row.copy_from_slice(bias));
        } else {
            output.fill(0.0);
        }
        let rows = output.len() / self.out_features;
        multiply_add(input, &self.weight, output, (rows, self.out_features, self.in_features));
    }
}

impl std::fmt::Debug for FloatLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FloatLinear")
            .field("out_features", &self.out_features)
            .field("in_features", &self.in_features)
            .field("bias", &self.bias.is_some())
            .finish_non_exhaustive()
    }
}
