//! What can go wrong, one variant a cause.

use crate::hash::ContentHash;
use datafusion::error::DataFusionError;
use std::fmt;
use std::path::PathBuf;

/// What this package's functions give.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model can't be used, or a function not be called so.
///
/// Its debug form is its message: Ballista sends errors from process to process as that.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library's: of a layer, a table, a file, or the CPU.
    #[error("model `{model}`: {}", .source.chain())]
    Fbgemm {
        /// The model's name.
        model: String,
        /// Why.
        source: fbgemm::Error,
    },

    /// The encoder's: of a model's folder, or a text.
    #[error("model `{model}`: {}", .source.chain())]
    Encoder {
        /// The model's name.
        model: String,
        /// Why.
        source: fbgemm_encoder::Error,
    },

    /// A model's file or folder can't be read on this machine.
    #[error("model `{model}`: {}: {source}", .path.display())]
    File {
        /// The model's name.
        model: String,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// Neither a file nor a folder with `.safetensors` or `.json` in it.
    #[error("model `{model}`: {}: no .safetensors or .json file in it, expected a model's folder or file", .path.display())]
    NoModel {
        /// The model's name.
        model: String,
        /// Which.
        path: PathBuf,
    },

    /// The files here are not those that the query was planned with: it would be another model's answer.
    #[error(
        "model `{model}`: {} has content sha256 {given} on this machine, the query was planned with {expected}",
        .path.display()
    )]
    WrongContent {
        /// The model's name.
        model: String,
        /// Its path.
        path: PathBuf,
        /// The hash of what lies there.
        given: ContentHash,
        /// The hash that the plan names.
        expected: ContentHash,
    },

    /// The files changed while they were read.
    #[error("model `{model}`: {} changed while it was loaded", .path.display())]
    Changed {
        /// The model's name.
        model: String,
        /// Its path.
        path: PathBuf,
    },

    /// A model's answer for a row would depend on the rows beside it, and so on the partitioning.
    #[error(
        "model `{model}` has layers whose answer depends on the batch (in floats or fp16, or with inputs quantized per \
         tensor); quantize it with --scheme accurate or portable"
    )]
    BatchDependent {
        /// The model's name.
        model: String,
    },

    /// Not one score a pair.
    #[error("model `{model}` gives {given} numbers a text, expected a reranker with one")]
    NotAReranker {
        /// The model's name.
        model: String,
        /// How many.
        given: usize,
    },

    /// A call names a model that is not registered.
    #[error("no model `{given}`; registered: {known}")]
    UnknownModel {
        /// The name.
        given: String,
        /// The names that there are.
        known: String,
    },

    /// A call that names no model, and several are registered, or none.
    #[error("{function} needs a model's name as its first argument, as `{example}`; registered: {known}")]
    WhichModel {
        /// The function.
        function: &'static str,
        /// What to write.
        example: &'static str,
        /// The names that there are.
        known: String,
    },

    /// A function was called with other arguments than it takes.
    #[error("{function}: {given}; expected {expected}")]
    WrongArguments {
        /// The function.
        function: &'static str,
        /// What is wrong.
        given: String,
        /// What it takes.
        expected: &'static str,
    },

    /// A row has another number of features than the layer reads.
    #[error("model `{model}`: layer `{layer}` reads {expected} features, a row has {given}")]
    WrongFeatures {
        /// The model's name.
        model: String,
        /// The layer's.
        layer: String,
        /// The row's length.
        given: usize,
        /// The layer's.
        expected: usize,
    },

    /// A plan from another process holds what this version can't read.
    #[error("the plan's call of `{name}` can't be read: {message}")]
    WrongPlan {
        /// The function's name in the plan.
        name: String,
        /// Why.
        message: String,
    },
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
