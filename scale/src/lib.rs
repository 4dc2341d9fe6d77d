//! SQL functions for [DataFusion](datafusion) and Ballista that score rows with a quantized model: texts to vectors, pairs
//! of texts to scores, features through a layer, bags of an embedding table's rows.
//!
//! ```no_run
//! use datafusion::prelude::SessionContext;
//! use fbgemm_datafusion::Model;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = SessionContext::new();
//! fbgemm_datafusion::register(&context, [Model::open("minilm", "all-MiniLM-L6-v2")?]);
//! context.register_parquet("texts", "in/", Default::default()).await?;
//! context.sql("COPY (SELECT id, embed(text) AS v FROM texts) TO 'out/' STORED AS PARQUET").await?.collect().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | function                          | gives                        | of                                                  |
//! |-----------------------------------|------------------------------|-----------------------------------------------------|
//! | `embed(text)`                     | `FixedSizeList<Float32>`     | a text's vector                                     |
//! | `rerank(query, text)`             | `Float32`                    | a reranker's score of a pair, before any sigmoid    |
//! | `linear(layer, features)`         | `FixedSizeList<Float32>`     | a list of features, or several columns              |
//! | `embedding_bag(table, indices)`   | `FixedSizeList<Float32>`     | a list of row numbers: their sum; with `'mean'` behind them, their mean |
//!
//! A text is `Utf8`, `LargeUtf8` or `Utf8View`, alone or in a dictionary, whose values are then scored once each in a
//! batch. Null gives null; so does a list with a null in it. Of several models, a call says which: `embed('name', text)`,
//! `rerank('name', query, text)`, `linear('name:layer', ...)`, `embedding_bag('name:table', ...)`.
//!
//! # The same bits for any partitioning
//! A row's answer does not depend on the rows beside it: not on the batch size, the number of partitions, or the threads.
//! What could not promise it is an error for texts ([`Error::BatchDependent`]); a layer that quantizes its input per call,
//! or is in floats or fp16, is given its rows one at a time. Kinds of CPU differ unless the scheme is
//! [`portable`](Model::portable).
//!
//! # A model in a plan
//! The plan names the model by path and [hash](ContentHash), as `EXPLAIN` shows, and the functions' calls take both along
//! to other processes ([`ModelCodec`], feature `codec`). A process loads a model when a query first needs it, checks the
//! hash, and shares the model among its threads. Another file at the path is an error, [`Error::WrongContent`].
//!
//! # Threads
//! Texts are embedded by rayon's global pool, whatever the number of partitions: as many threads as there are CPUs, or as
//! `RAYON_NUM_THREADS` or [`rayon::ThreadPoolBuilder::build_global`] say. Layers and tables run on DataFusion's own.

#![deny(unsafe_code)]

mod arrays;
#[cfg(feature = "codec")]
mod codec;
mod error;
mod function;
mod hash;
mod model;
mod task;

#[cfg(feature = "codec")]
pub use codec::ModelCodec;
pub use error::{Error, Result};
pub use function::register;
pub use hash::ContentHash;
pub use model::{Model, release_models};
