//! What the service counts and times, in Prometheus' text.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Of what `/metrics` answers.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    path: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    path: String,
}

/// From a quarter of a millisecond to 8 s.
fn times() -> Histogram {
    Histogram::new((0..16).map(|i| 0.00025 * f64::from(1 << i)))
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Family<Path, Histogram, fn() -> Histogram>,
    texts: Counter,
    tokens: Counter,
    cancelled: Counter,
    panics: Counter,
    queue: Gauge,
    connections: Gauge,
    resident: Gauge,
    processor: Counter<f64, std::sync::atomic::AtomicU64>,
    queued: Histogram,
    batch_texts: Histogram,
    batch_tokens: Histogram,
    batch_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(times),
            texts: Counter::default(),
            tokens: Counter::default(),
            cancelled: Counter::default(),
            panics: Counter::default(),
            queue: Gauge::default(),
            connections: Gauge::default(),
            resident: Gauge::default(),
            processor: Counter::default(),
            queued: times(),
            batch_texts: Histogram::new((0..12).map(|i| f64::from(1 << i))),
            batch_tokens: Histogram::new((2..15).map(|i| f64::from(1 << i))),
            batch_seconds: times(),
        };
        let mut registry = Registry::default();
        let r = &mut registry;
        let process = r.sub_registry_with_prefix("process");
        process.register_with_unit("resident_memory", "Memory in use", Unit::Bytes, metrics.resident.clone());
        let help = "Processor time of all threads";
        process.register_with_unit("cpu", help, Unit::Seconds, metrics.processor.clone());
        let r = r.sub_registry_with_prefix("fbgemm");
        let help = "Answered requests; 499: the client went away before";
        r.register("requests", help, metrics.requests.clone());
        let help = "From a request's head to its answer";
        r.register_with_unit("request_duration", help, Unit::Seconds, metrics.durations.clone());
        r.register("texts", "Computed texts", metrics.texts.clone());
        r.register("tokens", "Computed tokens", metrics.tokens.clone());
        let help = "Texts that left the queue because the client went away, or waited too long";
        r.register("cancelled_texts", help, metrics.cancelled.clone());
        r.register("panics", "Panics of the model, each caught", metrics.panics.clone());
        r.register("queue_texts", "Texts that wait", metrics.queue.clone());
        r.register("connections", "Open connections", metrics.connections.clone());
        let help = "From a request's arrival in the queue to its first batch";
        r.register_with_unit("queue_duration", help, Unit::Seconds, metrics.queued.clone());
        r.register("batch_texts", "Texts of a batch", metrics.batch_texts.clone());
        r.register("batch_tokens", "Tokens of a batch", metrics.batch_tokens.clone());
        let help = "Time to compute a batch";
        r.register_with_unit("batch_duration", help, Unit::Seconds, metrics.batch_seconds.clone());
        metrics.registry = registry;
        metrics
    }

    pub(crate) fn request(&self, path: &str, status: u16, took: Duration) {
        self.requests.get_or_create(&Request { path: path.to_string(), status }).inc();
        self.durations.get_or_create(&Path { path: path.to_string() }).observe(took.as_secs_f64());
    }

    pub(crate) fn queued(&self, time: Duration) {
        self.queued.observe(time.as_secs_f64());
    }

    pub(crate) fn queue(&self, texts: usize) {
        self.queue.set(texts as i64);
    }

    pub(crate) fn cancelled_texts(&self, texts: usize) {
        self.cancelled.inc_by(texts as u64);
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }

    pub(crate) fn batch(&self, texts: usize, tokens: usize, took: Duration) {
        self.texts.inc_by(texts as u64);
        self.tokens.inc_by(tokens as u64);
        self.batch_texts.observe(texts as f64);
        self.batch_tokens.observe(tokens as f64);
        self.batch_seconds.observe(took.as_secs_f64());
    }

    /// Counts a connection until what this gives is dropped.
    pub(crate) fn connection(&self) -> Connection {
        self.connections.inc();
        Connection(self.connections.clone())
    }

    /// All of it as text.
    pub(crate) fn encode(&self) -> String {
        self.resident.set(resident_bytes().unwrap_or_default());
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let time = time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9;
        self.processor.inner().store(time.to_bits(), std::sync::atomic::Ordering::Relaxed);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all");
        text
    }
}

/// One that is counted.
pub(crate) struct Connection(Gauge);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Nothing where the system has no /proc.
fn resident_bytes() -> Option<i64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as i64)
}
