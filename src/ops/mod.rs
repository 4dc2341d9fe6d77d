//! PyTorch's operators by name, as free functions on slices.

pub(crate) mod activations;
pub(crate) mod embedding;
pub(crate) mod embedding_bag;
pub(crate) mod gates;
pub(crate) mod lengths;
pub(crate) mod linear_fp16;
pub(crate) mod linear_int8;
pub(crate) mod linear_static;
pub(crate) mod packed;
pub(crate) mod per_row;
pub(crate) mod quantized_input;
