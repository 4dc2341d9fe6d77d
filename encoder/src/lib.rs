//! Text in, vectors out.
#![deny(unsafe_code)]

pub mod kernels;
mod simd;
