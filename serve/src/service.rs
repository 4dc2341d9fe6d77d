//! A model ready to be asked.

use crate::error::Result;
use crate::http;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::options::ServiceOptions;
use fbgemm_encoder::{Encoder, EncoderOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model, the threads that compute with it, and what they count. Clones are the same service; when the last one is
/// dropped, the threads finish what waits and end.
///
/// [`router`](Self::router) is for an axum program of your own; [`serve`](crate::serve) is a whole server.
#[derive(Debug, Clone)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    model: Model,
    options: ServiceOptions,
    metrics: Arc<Metrics>,
    name: String,
    dtype: &'static str,
    /// In seconds since 1970.
    started: u64,
    ending: AtomicBool,
}

impl Service {
    /// Opens a model's folder, as [`Encoder::open`] does, and starts the compute threads.
    ///
    /// Vectors are scaled to length 1 where a request does not say otherwise, as text-embeddings-inference does it,
    /// whatever the folder says.
    ///
    /// # Errors
    /// Those of [`Encoder::open`]; [`Error::Option`](crate::Error::Option).
    pub fn open(folder: impl AsRef<Path>, encoder: &EncoderOptions, options: ServiceOptions) -> Result<Self> {
        options.check()?;
        let folder = folder.as_ref();
        let dtype = encoder.dtype();
        let encoder = Encoder::open(folder, &encoder.clone().normalize(false))?;
        let name = options.name.clone().unwrap_or_else(|| folder_name(folder));
        let metrics = Arc::new(Metrics::new());
        let model = Model::start(encoder, &options, metrics.clone())?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let ending = AtomicBool::new(false);
        Ok(Self(Arc::new(Inner { model, options, metrics, name, dtype, started, ending })))
    }

    /// All endpoints, for an axum program of your own. Time-outs for slow heads and slow readers, and the limit on
    /// connections, are [`serve`](crate::serve)'s; all other options hold here, too.
    ///
    /// It needs a tokio runtime with time enabled.
    pub fn router(&self) -> axum::Router {
        http::router(self.clone())
    }

    /// The model's name, as clients see it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The metrics, as `/metrics` answers them (OpenMetrics 1.0).
    pub fn metrics_text(&self) -> String {
        self.0.metrics.encode()
    }

    /// How this service runs.
    pub fn options(&self) -> &ServiceOptions {
        &self.0.options
    }

    pub(crate) fn model(&self) -> &Model {
        &self.0.model
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn dtype(&self) -> &'static str {
        self.0.dtype
    }

    pub(crate) fn started(&self) -> u64 {
        self.0.started
    }

    /// From now on `/health` says that this service is to end.
    pub(crate) fn end(&self) {
        self.0.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.0.ending.load(Ordering::Relaxed)
    }
}

/// Of a Hugging Face cache (`models--sentence-transformers--all-MiniLM-L6-v2`), the model's own name.
fn folder_name(folder: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = folder.canonicalize().ok().and_then(|path| name(&path)).or_else(|| name(folder)).unwrap_or_default();
    name.strip_prefix("models--").map_or(name.clone(), |name| name.replace("--", "/"))
}
