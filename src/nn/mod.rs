//! Layers that own their weights: `forward` on numbers of any element type.

#[cfg(feature = "ndarray")]
pub(crate) mod arrays;
pub(crate) mod by_parts;
pub(crate) mod embedding;
pub(crate) mod float_linear;
pub(crate) mod forms;
pub(crate) mod fp16_linear;
pub(crate) mod fused;
pub(crate) mod linear;
pub(crate) mod quantized_linear;
pub(crate) mod recurrent;
