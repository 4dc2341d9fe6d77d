//! Choosing and holding numbers: ranges, schemes, observers, quantized weights.

pub(crate) mod input;
pub(crate) mod observer;
pub(crate) mod range;
pub(crate) mod saturation;
pub(crate) mod weight;
pub(crate) mod weight_scheme;
