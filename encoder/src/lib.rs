//! Text in, vectors out: BERT-class encoders from the folders that people have, their linear layers in int8 by FBGEMM.
//!
//! ```no_run
//! use fbgemm_encoder::{Encoder, EncoderOptions};
//!
//! let encoder = Encoder::open("all-MiniLM-L6-v2", &EncoderOptions::new())?;
//! let vectors = encoder.embed(&["Where is the station?", "The train leaves at nine.", "A recipe for bread"])?;
//! let vectors: Vec<&[f32]> = vectors.chunks_exact(encoder.outputs()).collect();
//! let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
//! assert!(dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]));
//! # Ok::<(), fbgemm_encoder::Error>(())
//! ```
//!
//! BERT and MiniLM, RoBERTa, XLM-RoBERTa and CamemBERT, DistilBERT, MPNet; mean, CLS and max pooling, dense heads,
//! normalization, and classifiers (rerankers). What is not there is an error that names it.
//!
//! # The same vector in every batch
//! There is no padding: the texts of a call lie one behind the other. Each row of a layer's input has its own scale, so
//! that a text's vector is the same, bit for bit, alone and beside any others, on any number of threads. The kernels
//! between the layers give the same bits on every CPU; with [`Int8Scheme::portable`](fbgemm::Int8Scheme::portable) so
//! do the layers.
//!
//! # To be fast
//! - Give a call as many texts as there are, of any lengths. They are taken through the model in pieces of at most 256
//!   tokens, so that a call of more is no faster a text; one of 64 is nearly as fast.
//! - Many requests at once: one a thread, each in a rayon pool of one thread, is the most throughput. One call on
//!   several threads gives each its texts; one text alone is split by its rows.
//! - [`Encoder::embed_tokens`] takes tokens, and allocates nothing.
//!
//! The pieces are public for graphs of your own: [`kernels`], and
//! [`QuantizedLinear::forward_rows`](fbgemm::QuantizedLinear::forward_rows), which shows each row of a layer's output
//! while it is in the cache.

#![deny(unsafe_code)]

mod config;
mod encoder;
mod error;
mod head;
pub mod kernels;
mod prompts;
mod rows;
mod simd;
mod text;
mod tokens;
mod transformer;
mod weights;

pub use encoder::{Encoder, EncoderOptions, model_folder, release_thread_buffers};
pub use error::{Error, Result};
pub use head::Pooling;
pub use text::Truncation;
pub use tokens::Tokens;
