//! What the packages must bear, as functions of a fuzzer's bytes: each gives or refuses something and never panics, reads
//! beyond its buffers or ends the process.
//!
//! `tests/` drives them for a bounded time on any toolchain, `../fuzz` without end where there is a nightly one.

#![deny(unsafe_code)]

mod cases;
mod derive;
mod encoder;
mod files;
mod mutate;
mod operators;
mod schemes;
mod service;

pub use cases::{case_file, cases};
pub use derive::derive;
pub use encoder::encoder;
pub use files::files;
pub use operators::operators;
pub use schemes::schemes;
pub use service::service;

/// A body: what it makes of the bytes is its own.
pub type Body = fn(&[u8]);

/// All of them, by name.
pub const BODIES: [(&str, Body); 7] = [
    ("cases", cases),
    ("derive", derive),
    ("encoder", encoder),
    ("files", files),
    ("operators", operators),
    ("schemes", schemes),
    ("service", service),
];
