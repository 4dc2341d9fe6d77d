//! Models in safetensors files: plain int8 weights under plain names, never packed ones.
//!
//! A quantized layer `x` is `x.weight` (I8, \[out_features, in_features\]), `x.scale` (F32, \[1\], or \[out_features\]
//! where each output has its own), `x.zero_point` (I32, as many), `x.col_offsets` (I32, \[out_features\]) and, if it
//! has one, `x.bias` (F32, \[out_features\]). All else is as in an fp32 checkpoint. The metadata has `fbgemm_format`,
//! the layout's version, and, where a layer's input is not quantized per tensor, `input:x`, an `InputScheme` in words.
//! A layer with its weight in fp16 is `x.weight` (F16) and `x.bias` (F32), as in an fp16 checkpoint, and `fp16:x` = `1`
//! in the metadata. An embedding in 8, 4 or 2 bits is `x.weight` (U8) and `embedding:x` in the metadata (`tables.rs`).
//! The linear layers of recurrent ones have PyTorch's names, `x.weight_ih_l0`, `x.scale_ih_l0` (`recurrent.rs`).
//! Version 2 has more than one scale, or such an input or weight, version 3 such an embedding, and version 4 such a
//! recurrent layer; a file without any of them is written as version 1.

pub(crate) mod checkpoint;
pub(crate) mod checkpoint_options;
mod foreign;
mod format;
mod header;
pub(crate) mod layers;
pub(crate) mod model_file;
mod output;
mod recurrent;
mod shards;
mod source;
mod tables;
mod tensor;
mod write;
