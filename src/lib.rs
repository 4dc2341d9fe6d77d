#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod cpu;
mod error;
#[cfg_attr(not(fbgemm_linked), path = "ffi_unlinked.rs")]
#[allow(unsafe_code)]
mod ffi;
mod linear;
mod packed;
mod provider;
mod range;
mod weight;

pub use cpu::{Isa, cpu_support};
pub use error::{Error, Result};
pub use linear::{linear_int8_weight, linear_int8_weight_into, linear_int8_weight_tasks};
pub use packed::{PackedMatrix, pack_matrix};
pub use provider::{Provider, provider};
pub use weight::{QuantizedWeight, quantize_weight};
