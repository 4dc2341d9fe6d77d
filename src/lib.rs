// Where the README's links lead here, before it: in Markdown, the first definition of a link's name counts.
#![doc = include_str!(concat!(env!("OUT_DIR"), "/links.md"))]
#![doc = include_str!("../README.md")]
//! # One form for everything
//!
//! - **Operators** are free functions with PyTorch's names, less the prefix: [`linear_int8_weight`], [`linear_dynamic`],
//!   [`linear_relu_static`]. A ReLU is part of the name, as in PyTorch. Each has a form that returns a `Vec` and one,
//!   `_into`, that writes to the caller's slice, which is its last argument. They run on the calling thread; those of
//!   embeddings have a `_tasks` form, too, as their tables may be borrowed, which no layer can hold.
//! - **Layers** own their weights: [`Linear`] of any kind, [`FloatLinear`], [`QuantizedLinear`], [`Fp16Linear`];
//!   [`Embedding`] and [`EmbeddingBag`]; [`Lstm`], [`Gru`], [`Rnn`] and their cells. Linear ones all have
//!   `forward`, `forward_into`, `forward_tasks`, `forward_rayon`, `suggested_tasks` and `warm_up`, for every [`Element`].
//! - **Shapes**: weights are `[out_features, in_features]`, row-major, and arguments come in this order; only
//!   [`pack_matrix`] has PyTorch's other order.
//! - **Constructors** take by value what they keep and by slice what they read. `with_x(self)` changes one thing of a
//!   finished value; options and schemes are built by their own words, as `WeightScheme::new().per_channel()`. `into_x`
//!   consumes.
//! - **Quantized** is what runs through FBGEMM: int8 or fp16. **Static** parameters are those that a calibration found,
//!   **dynamic** ones are found in each call.
#![deny(unsafe_code)]

// So that the derive's `::fbgemm` paths also hold in this crate's own documentation tests and examples.
extern crate self as fbgemm;

// From the ground up: isa, error, ffi (of which cpu and provider ask the library), quant, ops, nn, model. Each floor imports
// only from those below it, which a test checks (tests/operations/layout.rs).
mod cpu;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod isa;
mod model;
mod nn;
mod ops;
#[cfg(all(doc, not(doctest)))]
pub mod pages;
mod provider;
mod quant;

pub use cpu::cpu_support;
pub use error::{Error, Result};
#[cfg(feature = "derive")]
pub use fbgemm_derive::Modules;
pub use isa::Isa;
#[cfg(feature = "safetensors")]
pub use model::file::checkpoint::quantize_checkpoint;
#[cfg(feature = "safetensors")]
pub use model::file::checkpoint_options::CheckpointOptions;
#[cfg(feature = "safetensors")]
pub use model::file::layers::{PlainTensor, load_modules, save_modules};
#[cfg(feature = "safetensors")]
pub use model::file::model_file::ModelFile;
pub use model::modules::{Module, ModuleMut, Modules};
pub use model::names::{join_name, part_name};
pub use model::options::QuantizeOptions;
pub use model::quantize::{quantize_modules, unload_modules};
pub use model::report::{BetterScheme, LayerKind, LayerReport, QuantizeReport, Skipped, WeightReport};
pub use nn::embedding::{Embedding, EmbeddingBag};
pub use nn::float_linear::FloatLinear;
pub use nn::fp16_linear::Fp16Linear;
pub use nn::linear::Linear;
pub use nn::quantized_linear::{PortableLinear, QuantizedLinear};
pub use nn::recurrent::gru::{Gru, GruCell};
pub use nn::recurrent::lstm::{Lstm, LstmCell};
pub use nn::recurrent::rnn::{Nonlinearity, Rnn, RnnCell};
pub use ops::activations::Activations;
pub use ops::embedding::{EmbeddingFormat, EmbeddingTable, pack_embedding, pack_embedding_into};
pub use ops::embedding_bag::{
    BagOptions, EmbeddingIndex, EmbeddingOutput, embedding, embedding_bag, embedding_bag_into, embedding_bag_tasks,
    embedding_into, embedding_tasks,
};
pub use ops::linear_fp16::{linear_fp16_weight, linear_fp16_weight_into};
#[cfg(feature = "profile")]
pub use ops::linear_int8::Profile;
pub use ops::linear_int8::{
    linear_dynamic, linear_dynamic_into, linear_int8_weight, linear_int8_weight_into, linear_relu_dynamic,
    linear_relu_dynamic_into, release_thread_buffer, thread_buffer_bytes,
};
pub use ops::linear_static::{linear_relu_static, linear_relu_static_into, linear_static, linear_static_into};
pub use ops::packed::{PackedMatrix, PackedMatrixFp16, pack_matrix, pack_matrix_fp16};
pub use ops::quantized_input::QuantizedInput;
pub use provider::{Provider, provider};
pub use quant::element::Element;
pub use quant::input::{InputGranularity, InputScheme, U8Params};
pub use quant::observer::InputObserver;
pub use quant::scheme::{Int8Scheme, LinearScheme};
pub use quant::weight::{QuantizedWeight, quantize_weight, quantize_weight_as};
pub use quant::weight_scheme::{WeightGranularity, WeightScheme};
