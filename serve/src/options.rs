//! How a service runs.

use crate::error::{Error, Result};
use crate::gather::Limits;
use std::time::Duration;

/// How a service runs. Made with [`new`](Self::new), then changed field by field.
///
/// ```
/// let mut options = fbgemm_serve::ServiceOptions::new();
/// options.threads = 2;
/// options.token = Some("a secret".to_string());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ServiceOptions {
    /// How many threads compute; each takes batches of its own. All that this machine has.
    pub threads: usize,
    /// The most tokens of a batch, 256: more make no text faster. A text of more is a batch alone.
    pub batch_tokens: usize,
    /// How long a text may wait for others to fill a batch: not at all. As nothing is padded, a thread that is free
    /// does best to take what is there.
    pub fill: Duration,
    /// How many texts can wait, 4096; a request of more than there is room for is answered with 429.
    pub queue_texts: usize,
    /// How long a request may wait for its vectors, 30 s; then it is answered with 503.
    pub deadline: Duration,
    /// The most texts of a request, 1024.
    pub request_texts: usize,
    /// The most bytes of a request's body, 2 MB.
    pub body_bytes: usize,
    /// How long a client may take to send a request's head, and how long a connection may be idle: 30 s.
    pub head_timeout: Duration,
    /// How long a client may take to send a request's body, 30 s.
    pub body_timeout: Duration,
    /// How long a client may take to read some of its answer, 30 s.
    pub write_timeout: Duration,
    /// The most connections at once, 4096; more wait to be accepted.
    pub connections: usize,
    /// How long requests may still run when the service is to end, 30 s.
    pub drain: Duration,
    /// Whether texts that are too long are cut where a request does not say.
    pub truncate: bool,
    /// What a client must show (`Authorization: Bearer ...`) for all but `/health` and the page at `/`.
    pub token: Option<String>,
    /// The model's name, as clients see it: its folder's, unless told.
    pub name: Option<String>,
}

/// Without the token.
impl std::fmt::Debug for ServiceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceOptions")
            .field("threads", &self.threads)
            .field("batch_tokens", &self.batch_tokens)
            .field("fill", &self.fill)
            .field("queue_texts", &self.queue_texts)
            .field("deadline", &self.deadline)
            .field("request_texts", &self.request_texts)
            .field("body_bytes", &self.body_bytes)
            .field("truncate", &self.truncate)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ServiceOptions {
    /// What each field says.
    pub fn new() -> Self {
        let half_a_minute = Duration::from_secs(30);
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            batch_tokens: 256,
            fill: Duration::ZERO,
            queue_texts: 4096,
            deadline: half_a_minute,
            request_texts: 1024,
            body_bytes: 2_000_000,
            head_timeout: half_a_minute,
            body_timeout: half_a_minute,
            write_timeout: half_a_minute,
            connections: 4096,
            drain: half_a_minute,
            truncate: true,
            token: None,
            name: None,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("threads", self.threads),
            ("batch_tokens", self.batch_tokens),
            ("request_texts", self.request_texts),
            ("body_bytes", self.body_bytes),
            ("connections", self.connections),
        ];
        for (name, size) in sizes {
            if size == 0 {
                return Err(Error::Option { name, given: "0".to_string(), expected: "1 or more".to_string() });
            }
        }
        if self.queue_texts < self.request_texts {
            let expected = format!("at least request_texts ({})", self.request_texts);
            return Err(Error::Option { name: "queue_texts", given: self.queue_texts.to_string(), expected });
        }
        if self.token.as_ref().is_some_and(|token| token.is_empty() || token.bytes().any(|b| !b.is_ascii_graphic())) {
            let expected = "printable ASCII without spaces, as a header can hold".to_string();
            return Err(Error::Option { name: "token", given: "empty, or has others".to_string(), expected });
        }
        Ok(())
    }

    pub(crate) fn gathering(&self) -> Limits {
        Limits {
            threads: self.threads,
            batch_tokens: self.batch_tokens,
            fill: self.fill,
            queue_texts: self.queue_texts,
            deadline: self.deadline,
        }
    }
}
