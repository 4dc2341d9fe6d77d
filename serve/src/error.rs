//! Why a service can't be made.

/// What this package's functions give.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a service can't be made. What is wrong with a request is answered to the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model can't be opened.
    #[error(transparent)]
    Model(#[from] fbgemm_encoder::Error),

    /// An option has a value that can't be.
    #[error("{name} is {given}, expected {expected}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// Its value.
        given: String,
        /// What can be.
        expected: String,
    },

    /// The system has no more threads.
    #[error("the compute threads can't be started: {0}")]
    Threads(#[source] std::io::Error),
}
