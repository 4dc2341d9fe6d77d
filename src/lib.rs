// Where the README's links lead here, before it: in Markdown, the first definition of a link's name counts.
#![doc = include_str!(concat!(env!("OUT_DIR"), "/links.md"))]
#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

// So that the derive's `::fbgemm` paths also hold in this crate's own documentation tests and examples.
extern crate self as fbgemm;

mod advice;
mod cpu;
mod element;
mod error;
#[cfg_attr(not(fbgemm_linked), path = "ffi_unlinked.rs")]
#[allow(unsafe_code)]
mod ffi;
#[cfg(feature = "safetensors")]
mod file;
mod fixed_point;
mod fp16;
mod input;
mod layer;
mod linear;
mod model;
mod packed;
#[cfg(all(doc, not(doctest)))]
pub mod pages;
mod provider;
mod range;
mod weight;

pub use advice::{Advice, LayerAdvice, LayerTiming, advise_linear_modules};
pub use cpu::{Isa, cpu_support};
pub use element::Element;
pub use error::{Error, Result};
#[cfg(feature = "derive")]
pub use fbgemm_derive::LinearModules;
#[cfg(feature = "safetensors")]
pub use file::{ModelFile, PlainTensor, load_linear_modules, quantize_checkpoint, save_linear_modules};
pub use fixed_point::{U8Params, linear_relu_static, linear_relu_static_into, linear_static, linear_static_into};
pub use fp16::{HalfLinear, PackedMatrixFp16, linear_fp16_weight, linear_fp16_weight_into, pack_matrix_fp16};
pub use input::{InputGranularity, InputObserver, InputScheme};
#[cfg(feature = "profile")]
pub use layer::Profile;
pub use layer::{PortableLinear, QuantizedLinear};
pub use linear::{
    linear_dynamic, linear_int8_weight, linear_int8_weight_into, linear_int8_weight_tasks, linear_relu_dynamic,
    release_thread_buffer, thread_buffer_bytes,
};
pub use model::{
    FloatLinear, LayerReport, Linear, LinearModules, QuantizeOptions, QuantizeReport, Skipped, WeightReport, join_name,
    quantize_linear_modules, unload_linear_modules,
};
pub use packed::{PackedMatrix, pack_matrix};
pub use provider::{Provider, provider};
pub use weight::{QuantizedWeight, WeightScheme, quantize_weight, quantize_weight_as};
