//! A linear layer of any kind behind one `forward`.

use super::float_linear::FloatLinear;
use super::forms::forms;
use super::fp16_linear::Fp16Linear;
use super::quantized_linear::QuantizedLinear;
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::ops::lengths::{check_size, new_output};
use crate::quant::element::Element;
use crate::quant::input::InputGranularity;
use crate::quant::range::finite_range;

/// A linear layer, y = x·Wᵀ + b, in fp32, int8 or fp16: what a model's struct holds, so that
/// [`quantize_modules`](crate::quantize_modules) can turn the one into the other.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Linear {
    /// In fp32.
    Float(FloatLinear),
    /// In int8, through FBGEMM.
    Int8(QuantizedLinear),
    /// With the weight in fp16, through FBGEMM.
    Fp16(Fp16Linear),
    /// Without its weight: not loaded yet, or unloaded.
    Unloaded {
        /// The number of outputs.
        out_features: usize,
        /// The number of inputs.
        in_features: usize,
    },
}

impl Linear {
    /// An fp32 layer; the arguments are [`FloatLinear::new`]'s.
    ///
    /// # Errors
    /// As [`FloatLinear::new`].
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, out_features: usize, in_features: usize) -> Result<Self> {
        FloatLinear::new(weight, bias, out_features, in_features).map(Self::Float)
    }

    /// The number of outputs.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Float(layer) => layer.out_features(),
            Self::Int8(layer) => layer.out_features(),
            Self::Fp16(layer) => layer.out_features(),
            Self::Unloaded { out_features, .. } => *out_features,
        }
    }

    /// The number of inputs.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Float(layer) => layer.in_features(),
            Self::Int8(layer) => layer.in_features(),
            Self::Fp16(layer) => layer.in_features(),
            Self::Unloaded { in_features, .. } => *in_features,
        }
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        match self {
            Self::Float(layer) => layer.bias(),
            Self::Int8(layer) => layer.bias(),
            Self::Fp16(layer) => layer.bias(),
            Self::Unloaded { .. } => None,
        }
    }

    /// Whether it is in int8 or fp16.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Self::Int8(_) | Self::Fp16(_))
    }

    /// What the layer holds in memory, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Float(layer) => layer.bytes(),
            Self::Int8(layer) => layer.bytes(),
            Self::Fp16(layer) => layer.bytes(),
            Self::Unloaded { .. } => 0,
        }
    }

    /// The suggested number of tasks for a call with this many rows on up to `threads` threads.
    pub fn suggested_tasks(&self, rows: usize, threads: usize) -> usize {
        match self {
            Self::Float(layer) => layer.suggested_tasks(rows, threads),
            Self::Int8(layer) => layer.suggested_tasks(rows, threads),
            Self::Fp16(layer) => layer.suggested_tasks(rows, threads),
            Self::Unloaded { .. } => 1,
        }
    }

    forms!("As [`QuantizedLinear::forward`], in fp32 those about lengths alone; [`Error::NotLoaded`].");

    /// The range of an input whose rows are computed in parts ([`forward_part`](Self::forward_part)), where it decides
    /// their bits.
    pub(super) fn shared_range(&self, input: &[f32]) -> Result<Option<(f32, f32)>> {
        match self {
            Self::Int8(layer) if layer.input_scheme().granularity() == InputGranularity::PerTensor => {
                finite_range(input, "input", SupportedCpu::get()?).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The number of rows that parts have to be a multiple of, for the bits of the whole.
    pub(super) fn rows_of_parts(&self) -> usize {
        if let Self::Fp16(layer) = self { layer.rows_of_parts() } else { 1 }
    }

    /// [`forward_into`](Self::forward_into) of some of an input's rows, whose [shared range](Self::shared_range) this is:
    /// in int8 and fp16 with the bits that they have in a call with all of them.
    pub(super) fn forward_part(&self, part: &[f32], range: Option<(f32, f32)>, output: &mut [f32]) -> Result<()> {
        match self {
            Self::Int8(layer) => {
                let operands = layer.operands();
                let cpu = operands.check(part, output)?;
                operands.run_checked(part, range, layer.input_scheme(), false, output, 1, |task| task(0), cpu)
            }
            _ => self.forward_into(part, output),
        }
    }

    fn run<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        tasks: usize,
        execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    ) -> Result<()> {
        match self {
            Self::Float(layer) => layer.forward_tasks(input, output, tasks, execute),
            Self::Int8(layer) => layer.forward_tasks(input, output, tasks, execute),
            Self::Fp16(layer) => layer.forward_tasks(input, output, tasks, execute),
            Self::Unloaded { .. } => Err(Error::NotLoaded),
        }
    }
}

impl From<QuantizedLinear> for Linear {
    fn from(layer: QuantizedLinear) -> Self {
        Self::Int8(layer)
    }
}

impl From<Fp16Linear> for Linear {
    fn from(layer: Fp16Linear) -> Self {
        Self::Fp16(layer)
    }
}

impl From<FloatLinear> for Linear {
    fn from(layer: FloatLinear) -> Self {
        Self::Float(layer)
    }
}
