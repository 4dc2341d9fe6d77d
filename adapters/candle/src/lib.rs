#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod embedding;
mod error;
mod file;
mod linear;

pub use embedding::{QuantizedEmbedding, quantized_embedding};
pub use error::{Error, Result};
pub use file::var_builder;
pub use linear::{QuantizedLinear, quantized_linear, quantized_linear_b, quantized_linear_no_bias};
