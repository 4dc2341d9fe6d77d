//! Whole models: the walk over their layers, quantizing them in one call, reports, and files.

#[cfg(feature = "safetensors")]
pub(crate) mod file;
#[cfg(feature = "safetensors")]
mod kind;
pub(crate) mod modules;
pub(crate) mod names;
pub(crate) mod options;
pub(crate) mod quantize;
pub(crate) mod report;
