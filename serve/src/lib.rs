//! Text in, vectors out, over HTTP, in the protocols that clients already speak: those of text-embeddings-inference and
//! of OpenAI, by [`fbgemm_encoder`].
//!
//! `fbgemm serve MODEL` is this package as a command. In a program of your own, [`serve`] is a whole server, and
//! [`Service::router`] what you mount in yours:
//!
//! ```no_run
//! use fbgemm_serve::{EncoderOptions, Service, ServiceOptions};
//!
//! let service = Service::open("all-MiniLM-L6-v2", &EncoderOptions::new(), ServiceOptions::new())?;
//! let app: axum::Router = axum::Router::new().nest("/embeddings", service.router());
//! # Ok::<(), fbgemm_serve::Error>(())
//! ```
//!
//! | endpoint                                            | answers as                                       |
//! |-----------------------------------------------------|--------------------------------------------------|
//! | `POST /embed`, `/rerank`, `/predict`, `/similarity` | text-embeddings-inference                        |
//! | `POST /v1/embeddings`, `GET /v1/models`             | OpenAI                                           |
//! | `GET /health`, `/info`                              | text-embeddings-inference                        |
//! | `GET /metrics`                                      | Prometheus (OpenMetrics 1.0)                     |
//! | `GET /`                                             | a page to try the model on, with live figures    |
//! | `POST /`                                            | `/embed`, `/rerank` or `/predict`, as the model is |
//!
//! # The same vector for every client
//! Texts of all requests are gathered into batches without padding; a text's vector is the same, bit for bit, alone and
//! beside any others. A request whose client goes away leaves the queue.
//!
//! # Threads
//! The service has [`threads`](ServiceOptions::threads) of its own that compute. Short texts are tokenized on the
//! thread that reads them, longer ones (8 KB) where tokio runs what blocks.

#![deny(unsafe_code)]

mod error;
mod gather;
mod http;
mod input;
mod listen;
mod metrics;
mod model;
mod openai;
mod options;
mod refusal;
mod service;
mod tei;

pub use error::{Error, Result};
pub use fbgemm_encoder::EncoderOptions;
pub use listen::serve;
pub use options::ServiceOptions;
pub use service::Service;
