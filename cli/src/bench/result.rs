//! What the harness finds out: data only, for tables, files and plots.

use serde::Serialize;

/// One run of the harness.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Where and with what it ran.
    pub machine: Machine,
    /// What this machine can do at most.
    pub limits: Limits,
    /// Every layer at every batch size and number of threads.
    pub cases: Vec<Case>,
    /// Embedding tables, where a preset has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableCase>,
    /// Recurrent layers, where a preset has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recurrent: Vec<RecurrentCase>,
}

/// The machine and the versions, as they stand in every output.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Machine {
    /// The CPU's own name.
    pub cpu: String,
    /// The instruction set that FBGEMM uses.
    pub isa: String,
    /// FBGEMM's version and provider.
    pub fbgemm: String,
    /// This crate's version.
    pub version: String,
    /// How many threads the machine runs at once.
    pub threads: usize,
    /// The day, UTC, as 2026-11-24.
    pub date: String,
    /// Whether the caches were emptied of weights before each timed call.
    pub cold: bool,
}

/// This machine's limits, measured.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Bytes read per second from a buffer of so many bytes, by so many threads.
    pub read: Vec<ReadLimit>,
    /// Multiply-adds per second and thread, in int8 as FBGEMM's kernels do them, and in fp32.
    pub int8_per_second: f64,
    /// As above.
    pub fp32_per_second: f64,
}

/// Read bandwidth.
#[derive(Debug, Clone, Serialize)]
pub struct ReadLimit {
    /// Size of the buffer, which tells which cache it lies in.
    pub bytes: usize,
    /// Threads that read at once, each a part of the buffer.
    pub threads: usize,
    /// Bytes per second, all threads together.
    pub bytes_per_second: f64,
}

/// One layer at one batch size and number of threads, by all contenders.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The preset or file it comes from.
    pub source: String,
    /// The layer's name; equal shapes of a model are one case, under the first one's name.
    pub layer: String,
    /// How many layers of the source have this shape.
    pub count: usize,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// Rows of input.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Ours first.
    pub timings: Vec<Timing>,
    /// Where this crate's time goes (one thread only).
    pub split: Option<Split>,
    /// The share, 0 to 1, of the limit that binds this case that this crate reaches, and which limit that is.
    pub limit_share: f64,
    /// "read" or "int8".
    pub limit: &'static str,
}

/// One embedding table's shape and one length of bags, by all contenders.
#[derive(Debug, Clone, Serialize)]
pub struct TableCase {
    /// Rows of the table.
    pub rows: usize,
    /// Elements of a row.
    pub dimension: usize,
    /// Rows of a bag.
    pub bag: usize,
    /// Plain loops first, then a format each.
    pub timings: Vec<TableTiming>,
}

/// A format's result, or that of plain loops.
#[derive(Debug, Clone, Serialize)]
pub struct TableTiming {
    /// The format's name, or what else computed.
    pub contender: String,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Seconds for a row: the median.
    pub median: f64,
    /// The quartiles.
    pub low: f64,
    /// As above.
    pub high: f64,
    /// The time of touching such rows, over this one, for a table that is larger than the caches.
    pub limit_share: Option<f64>,
}

/// A recurrent layer over a sequence, by all contenders.
#[derive(Debug, Clone, Serialize)]
pub struct RecurrentCase {
    /// "LSTM" or "GRU".
    pub layer: String,
    /// Elements of its hidden state, and as many inputs.
    pub hidden: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Steps of the sequence.
    pub steps: usize,
    /// Ours first.
    pub timings: Vec<RecurrentTiming>,
}

/// A contender's result.
#[derive(Debug, Clone, Serialize)]
pub struct RecurrentTiming {
    /// Its name.
    pub contender: String,
    /// Whether its weights are quantized; else they are in fp32.
    pub quantized: bool,
    /// Seconds for the sequence: the median.
    pub median: f64,
    /// The quartiles.
    pub low: f64,
    /// As above.
    pub high: f64,
}

impl RecurrentCase {
    /// How many times faster than the best in fp32 this crate is.
    pub fn speed_up(&self) -> Option<f64> {
        let fp32 = self.timings.iter().filter(|timing| !timing.quantized).map(|timing| timing.median);
        Some(fp32.min_by(f64::total_cmp)? / self.timings.first()?.median)
    }
}

/// A whole encoder, beside others.
#[derive(Debug, Clone, Serialize)]
pub struct EncoderRun {
    /// Where and with what it ran.
    pub machine: Machine,
    /// Every length and number of texts and threads.
    pub cases: Vec<EncoderCase>,
    /// Each peer's cosine to fp32: its name, the least and the mean.
    pub cosines: Vec<(String, f64, f64)>,
}

/// Calls with so many texts, by all contenders.
#[derive(Debug, Clone, Serialize)]
pub struct EncoderCase {
    /// Threads.
    pub threads: usize,
    /// Tokens of each text, or "mixed".
    pub tokens: String,
    /// Texts of a call.
    pub texts: usize,
    /// Ours first.
    pub timings: Vec<EncoderTiming>,
}

/// A contender's result.
#[derive(Debug, Clone, Serialize)]
pub struct EncoderTiming {
    /// Its name.
    pub contender: String,
    /// Seconds of a call, by the clock.
    pub wall: f64,
    /// Seconds of a call, of all threads' processor time.
    pub processor: f64,
}

impl EncoderRun {
    /// All that competed anywhere, in their order.
    pub fn contenders(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for timing in self.cases.iter().flat_map(|case| &case.timings) {
            if !names.contains(&timing.contender.as_str()) {
                names.push(&timing.contender);
            }
        }
        names
    }
}

/// A contender's result.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// Its name, as "fbgemm", "gemm", "OpenBLAS 0.3".
    pub contender: String,
    /// Whether it computes in int8; else in fp32.
    pub int8: bool,
    /// Seconds for a call: the median.
    pub median: f64,
    /// The quartiles.
    pub low: f64,
    /// As above.
    pub high: f64,
    /// ‖y − exact‖ / ‖exact‖, exact in float64 from the fp32 weight.
    pub error: f64,
    /// Seconds to make its packed weight, where it has one.
    pub pack: Option<f64>,
}

/// Seconds of a call of this crate's.
#[derive(Debug, Clone, Serialize)]
pub struct Split {
    /// Finding the input's range and quantizing it.
    pub quantize: f64,
    /// Multiplying, and turning sums into floats.
    pub multiply: f64,
    /// All else: checks, buffers.
    pub rest: f64,
}

impl Case {
    /// The best fp32 contender's median.
    pub fn best_fp32(&self) -> Option<&Timing> {
        self.timings.iter().filter(|t| !t.int8).min_by(|a, b| a.median.total_cmp(&b.median))
    }

    /// This crate's.
    pub fn ours(&self) -> &Timing {
        &self.timings[0]
    }

    /// How many times faster than the best fp32 this crate is.
    pub fn speed_up(&self) -> Option<f64> {
        Some(self.best_fp32()?.median / self.ours().median)
    }
}

/// "10 M x 64": a table's rows, and the elements of one.
pub fn table_shape(rows: usize, dimension: usize) -> String {
    let rows = if rows >= 1_000_000 { format!("{} M", rows / 1_000_000) } else { format!("{} k", rows / 1000) };
    format!("{rows} x {dimension}")
}
