//! What goes wrong, and how it becomes a candle error and back.

use candle_core::{DType, DeviceLocation};

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that this crate refuses. `?` makes one of a [`fbgemm::Error`] and of a [`candle_core::Error`], and in a
/// function that returns candle's `Result` it makes a candle error of one of these, with all causes in its text.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the layer itself.
    #[error(transparent)]
    Fbgemm(#[from] fbgemm::Error),

    /// From candle.
    #[error(transparent)]
    Candle(candle_core::Error),

    /// FBGEMM computes on the CPU alone.
    #[error("the {what} is on {given:?}, expected the CPU")]
    WrongDevice {
        /// Of which tensor.
        what: &'static str,
        /// Where it is.
        given: DeviceLocation,
    },

    /// A tensor's elements are of a type that there is no kernel for.
    #[error("the {what} has elements of type {}, expected {expected}", given.as_str())]
    WrongDType {
        /// Which tensor.
        what: &'static str,
        /// Its type.
        given: DType,
        /// The types that it may have.
        expected: &'static str,
    },

    /// A tensor has another shape than its layer.
    #[error("the {what} has shape {given:?}, expected {expected}")]
    WrongShape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        given: Vec<usize>,
        /// What it should be.
        expected: String,
    },

    /// A layer that is quantized already was asked of a `VarBuilder` that can't read it: candle has no int8.
    #[error("the layer is quantized already, and this VarBuilder can't read int8: use fbgemm_candle::var_builder")]
    NeedsVarBuilder,

    /// An error about one layer of a model.
    #[error("layer {name:?}")]
    InLayer {
        /// The layer's dotted name.
        name: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
}

impl Error {
    /// The message and those of all its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }

    pub(crate) fn in_layer(self, name: String) -> Self {
        Self::InLayer { name, source: Box::new(self) }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(error)
    }
}

/// candle's own errors come back as they were. It keeps no more than the text of others, so all causes are in that.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => Self::wrap(error.chain()),
        }
    }
}
