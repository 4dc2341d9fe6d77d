//! Stands in for `ffi` where there is no FBGEMM: nothing here can be reached, as `cpu_support` refuses first.

use crate::{Error, Isa, Result};
use std::convert::Infallible;

const REFUSED: Error = Error::UnsupportedTarget { target: "a target without a provider" };

#[derive(Clone, Copy)]
#[allow(dead_code)]
pub(crate) struct TensorQuantizationParams {
    pub scale: f32,
    pub zero_point: i32,
    pub precision: i32,
}

pub(crate) const MAX_TASKS: usize = 1024;

pub(crate) fn instruction_set() -> Result<Isa> {
    Err(REFUSED)
}

pub(crate) fn choose_quantization_params(_: f32, _: f32, _: i32, _: i32) -> Result<TensorQuantizationParams> {
    Err(REFUSED)
}

pub(crate) fn quantize_int8(_: &[f32], _: &mut [i8], _: TensorQuantizationParams, _: Isa) -> Result<()> {
    Err(REFUSED)
}

pub(crate) struct Packed(Infallible);

impl Packed {
    pub(crate) fn new(_: &[i8], _: usize, _: usize, _: Isa) -> Result<Self> {
        Err(REFUSED)
    }

    pub(crate) fn unpack(&self) -> Result<Vec<i8>> {
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
}

pub(crate) struct PackedFp16(Infallible);

impl PackedFp16 {
    pub(crate) fn new(_: &[f32], _: usize, _: usize, _: Isa) -> Result<Self> {
        Err(REFUSED)
    }

    pub(crate) fn unpack(&self) -> Result<Vec<f32>> {
        match self.0 {}
    }

    pub(crate) fn linear(&self, _: &[f32], _: &mut [f32]) -> Result<()> {
        match self.0 {}
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
}

pub(crate) struct Linear<'a>(&'a Packed);

impl<'a> Linear<'a> {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        _: &'a [f32],
        _: TensorQuantizationParams,
        _: Option<crate::input::InputScheme>,
        packed: &'a Packed,
        _: &'a crate::weight::Parameters,
        _: &'a [f32],
        _: bool,
        _: Isa,
    ) -> Self {
        Self(packed)
    }

    #[cfg(feature = "profile")]
    pub(crate) fn quantize_input(&self) -> Result<()> {
        match self.0.0 {}
    }

    pub(crate) fn run(&self, _: &mut [f32], _: usize, _: impl FnOnce(&(dyn Fn(usize) + Sync))) -> Result<usize> {
        match self.0.0 {}
    }
}

pub(crate) fn linear_static(
    _: &[u8],
    packed: &Packed,
    _: &crate::weight::Parameters,
    _: &[f32],
    _: &mut [u8],
    _: &crate::fixed_point::Fixed,
    _: bool,
) -> Result<()> {
    match packed.0 {}
}

pub(crate) fn release_scratch() {}

pub(crate) fn scratch_bytes() -> usize {
    0
}
