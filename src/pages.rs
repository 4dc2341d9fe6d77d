//! Pages of the repository that the crate's first page links to. They are in the documentation only.

/// Times, errors and memory, measured, and where int8 loses (`benches/README.md`).
///
#[doc = include_str!(concat!(env!("OUT_DIR"), "/links.md"))]
#[doc = include_str!("../benches/README.md")]
pub mod figures {}

/// The script that exports a model from PyTorch to this crate's files and back (`examples/export.py`).
///
/// ~~~~python
#[doc = include_str!("../examples/export.py")]
/// ~~~~
pub mod export {}

/// What is fetched, how it is checked, and how to move to another FBGEMM (`vendor/README.md`).
///
#[doc = include_str!(concat!(env!("OUT_DIR"), "/links.md"))]
#[doc = include_str!("../vendor/README.md")]
pub mod vendor {}
