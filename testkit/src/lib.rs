//! What the tests, benches, examples and the command share: PyTorch's cases, a real model, an independent reference,
//! and how to fetch, make up numbers, time and start processes. Internal: no one outside this repository depends on it.

#![deny(unsafe_code)]

pub mod cases;
pub mod compare;
pub mod fetch;
pub mod files;
pub mod minilm;
pub mod process;
pub mod provider;
pub mod python;
pub mod random;
pub mod recurrent;
pub mod reference;
pub mod speech;
pub mod timing;
