//! What can go wrong, one variant a cause.

use std::path::PathBuf;

/// What this package's functions give.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model can't be loaded, or a text not be embedded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library's: of a layer, a file, or the CPU.
    #[error(transparent)]
    Fbgemm(#[from] fbgemm::Error),

    /// A file that a model needs can't be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// A file of the model's folder is not what it should be.
    #[error("{}: {message}", path.display())]
    InvalidFile {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },

    /// The model, or a part of it, is of a kind that this package does not have.
    #[error("{what} `{given}` is not supported; expected {expected}")]
    Unsupported {
        /// What it is: the architecture, the activation, a module.
        what: &'static str,
        /// The model's own word for it.
        given: String,
        /// What is supported.
        expected: &'static str,
    },

    /// A tensor has another shape than the configuration says.
    #[error("{name} has shape {given:?}, expected {expected:?}")]
    WrongShape {
        /// Its name.
        name: String,
        /// Its shape.
        given: Vec<usize>,
        /// The configuration's.
        expected: Vec<usize>,
    },

    /// The tokenizer refused.
    #[error("the tokenizer: {message}")]
    Tokenizer {
        /// Its message.
        message: String,
    },

    /// More tokens than the model has positions for, or none at all.
    #[error("{given} tokens, expected {least} to {limit}")]
    WrongTokens {
        /// How many.
        given: usize,
        /// The fewest that there can be.
        least: usize,
        /// The most.
        limit: usize,
    },

    /// A token that the model does not have.
    #[error("token {given}, expected less than {limit}")]
    UnknownToken {
        /// Its number.
        given: u32,
        /// The size of the vocabulary.
        limit: usize,
    },

    /// A segment that the model does not have.
    #[error("segment {given}, expected less than {limit}")]
    UnknownSegment {
        /// Its number.
        given: u32,
        /// How many there are.
        limit: usize,
    },

    /// An output of the wrong length.
    #[error("the output has {given} elements, expected {expected}")]
    WrongOutput {
        /// Its length.
        given: usize,
        /// A vector for each text.
        expected: usize,
    },
}

impl Error {
    /// The message, and those of what caused it, each behind a colon.
    pub fn chain(&self) -> String {
        match self {
            Self::Fbgemm(error) => error.chain(),
            other => other.to_string(),
        }
    }
}
