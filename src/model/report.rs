//! What quantizing did to each layer.

use crate::ops::embedding::EmbeddingFormat;
use crate::quant::input::InputScheme;
use crate::quant::scheme::LinearScheme;
use crate::quant::weight::QuantizedWeight;

/// Why a layer was left as it is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// No `include` matched it.
    NotIncluded,
    /// An `exclude` matched it.
    Excluded,
    /// The filter said no.
    Filtered,
    /// It has fewer inputs or outputs than `min_features`.
    TooSmall,
    /// It is in int8 or fp16 already.
    AlreadyQuantized,
    /// It has no weight yet.
    NotLoaded,
    /// It is an embedding: rows are looked up, not multiplied.
    Embedding,
    /// It is stored `[in_features, out_features]`, and was not chosen to be transposed.
    Transposed,
    /// No rule says that it is a linear layer's weight, and it was not chosen as one.
    NoRule,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotIncluded => "not included",
            Self::Excluded => "excluded",
            Self::Filtered => "filtered out",
            Self::TooSmall => "too small",
            Self::AlreadyQuantized => "quantized already",
            Self::NotLoaded => "not loaded",
            Self::Embedding => "an embedding",
            Self::Transposed => "stored [in, out]",
            Self::NoRule => "no linear layer by any rule",
        })
    }
}

/// What a reported layer is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A linear layer.
    Linear,
    /// A linear layer of a recurrent one: of its input or of its hidden state.
    Recurrent,
    /// An embedding.
    Embedding,
}

/// What became of one layer.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct LayerReport {
    /// Its dotted name.
    pub name: String,
    /// What it is.
    pub kind: LayerKind,
    /// Outputs; an embedding's rows.
    pub out_features: usize,
    /// Inputs; an embedding's dimension.
    pub in_features: usize,
    /// Its bytes in memory before.
    pub bytes_before: usize,
    /// And after.
    pub bytes_after: usize,
    /// What was gained and lost, or why it was left.
    pub outcome: std::result::Result<WeightReport, Skipped>,
    /// What speaks for its being a linear layer, an embedding or neither; empty in a model, where types tell.
    pub evidence: String,
}

/// What quantizing did to a weight.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightReport {
    /// ‖W − scale · (q − zero_point)‖ / ‖W‖; 0 for a weight of zeros.
    pub relative_error: f64,
    /// The largest such error of any output's row of weights: one output with large weights can hide what it costs the
    /// others.
    pub worst_row_error: f64,
    /// The share, 0 to 1, of the weights that were not 0 and have become 0. Some 2 % is usual; most of them, where a
    /// few weights are so large that all others lie below one step.
    pub zeroed_share: f64,
    /// The share, 0 to 1, of pairs of neighbouring weights whose products can saturate on CPUs without VNNI
    /// ([`QuantizedWeight::saturating_pairs`]).
    pub saturating_share: f64,
    /// A scheme that loses far less, where this one loses much.
    pub better: Option<BetterScheme>,
}

/// What a layer would lose by another scheme.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BetterScheme {
    /// The scheme.
    pub scheme: LinearScheme,
    /// Its [`WeightReport::relative_error`].
    pub relative_error: f64,
    /// Its [`WeightReport::worst_row_error`].
    pub worst_row_error: f64,
}

impl WeightReport {
    /// Compares a weight with its quantized form, which must have the same shape.
    pub fn of(weight: &[f32], quantized: &QuantizedWeight) -> Self {
        assert_eq!(weight.len(), quantized.data().len());
        let k = quantized.in_features();
        // One for all rows, or each row's own.
        let parameters = quantized.scales().iter().zip(quantized.zero_points()).cycle();
        let rows = weight.chunks(k).zip(quantized.data().chunks(k)).zip(parameters);
        let mut errors = RowErrors::default();
        for ((weight, data), (&scale, &zero_point)) in rows {
            let real = |&q: &i8| f64::from(scale) * f64::from(i32::from(q) - zero_point);
            errors.add_row(weight.iter().copied().zip(data.iter().map(real)));
        }
        let about = errors.report();
        let pairs = quantized.out_features() * quantized.in_features().div_ceil(2);
        Self { saturating_share: quantized.saturating_pairs() as f64 / pairs as f64, ..about }
    }

    /// Compares a weight with its rounded form, of the same length, rows of `in_features`.
    pub(crate) fn of_rounded(weight: &[f32], rounded: &[f32], in_features: usize) -> Self {
        let mut errors = RowErrors::default();
        errors.add_rounded(weight, rounded, in_features);
        errors.report()
    }

    /// Of a weight that was quantized before, and is stored as it is.
    #[cfg(feature = "safetensors")]
    pub(crate) fn unchanged(quantized: &QuantizedWeight) -> Self {
        let pairs = quantized.out_features() * quantized.in_features().div_ceil(2);
        let saturating_share = quantized.saturating_pairs() as f64 / pairs as f64;
        Self { relative_error: 0.0, worst_row_error: 0.0, zeroed_share: 0.0, saturating_share, better: None }
    }

    /// The same, the input being quantized so: to seven bits, no pair saturates.
    pub(crate) fn with_input(self, scheme: InputScheme) -> Self {
        Self { saturating_share: if scheme.never_saturates() { 0.0 } else { self.saturating_share }, ..self }
    }

    /// Whether so much is lost that another scheme is worth a look.
    pub(crate) fn loses_much(&self) -> bool {
        self.worst_row_error > 0.1 || self.zeroed_share > 0.25
    }

    /// The same, with this other scheme as the better one if it loses less than half as much.
    pub(crate) fn or_better(self, scheme: LinearScheme, other: &Self) -> Self {
        let less = |of: fn(&Self) -> f64| of(other) < of(&self) / 2.0;
        if !(less(|of| of.worst_row_error) || less(|of| of.zeroed_share)) {
            return self;
        }
        let (relative_error, worst_row_error) = (other.relative_error, other.worst_row_error);
        Self { better: Some(BetterScheme { scheme, relative_error, worst_row_error }), ..self }
    }
}

/// What rows of weights have become, added up.
#[derive(Default)]
pub(crate) struct RowErrors {
    error: f64,
    size: f64,
    worst: f64,
    zeroed: u64,
    not_zero: u64,
}

impl RowErrors {
    /// A row's weights, each with what it has become.
    fn add_row(&mut self, row: impl Iterator<Item = (f32, f64)>) {
        let (mut error, mut size) = (0.0, 0.0);
        for (w, real) in row {
            let difference = f64::from(w) - real;
            error += difference * difference;
            size += f64::from(w) * f64::from(w);
            self.not_zero += u64::from(w != 0.0);
            self.zeroed += u64::from(w != 0.0 && real == 0.0);
        }
        self.worst = self.worst.max(relative(error, size));
        self.error += error;
        self.size += size;
    }

    /// Rows of so many weights, and what they have become, as many.
    pub(crate) fn add_rounded(&mut self, weight: &[f32], rounded: &[f32], width: usize) {
        for (weight, rounded) in weight.chunks(width).zip(rounded.chunks(width)) {
            self.add_row(weight.iter().copied().zip(rounded.iter().map(|&w| f64::from(w))));
        }
    }

    pub(crate) fn report(&self) -> WeightReport {
        WeightReport {
            relative_error: relative(self.error, self.size),
            worst_row_error: self.worst,
            zeroed_share: self.zeroed as f64 / self.not_zero.max(1) as f64,
            saturating_share: 0.0,
            better: None,
        }
    }
}

fn relative(error: f64, size: f64) -> f64 {
    if size == 0.0 { 0.0 } else { (error / size).sqrt() }
}

/// What [`quantize_modules`](crate::quantize_modules) did, layer by layer. Displayed, it is an aligned table.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct QuantizeReport {
    /// Every layer of the model, in the order of the walk; embeddings too, where the options choose among them.
    pub layers: Vec<LayerReport>,
    /// What the linear layers were quantized to.
    pub scheme: LinearScheme,
    /// What the embeddings were quantized to, if they were.
    pub embeddings: Option<EmbeddingFormat>,
    /// The files that were written, an index last: none for a model in memory.
    pub files: Vec<std::path::PathBuf>,
}

impl QuantizeReport {
    /// Of no layers yet.
    pub(crate) fn new(scheme: LinearScheme, embeddings: Option<EmbeddingFormat>) -> Self {
        Self { layers: Vec::new(), scheme, embeddings, files: Vec::new() }
    }

    /// The layers that were quantized.
    pub fn quantized(&self) -> impl Iterator<Item = &LayerReport> {
        self.layers.iter().filter(|layer| layer.outcome.is_ok())
    }

    /// All layers' bytes before and after.
    pub fn bytes(&self) -> (usize, usize) {
        let sum = |bytes: fn(&LayerReport) -> usize| self.layers.iter().map(bytes).sum();
        (sum(|layer| layer.bytes_before), sum(|layer| layer.bytes_after))
    }
}

impl std::fmt::Display for QuantizeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |layer: &LayerReport| printable(&layer.name);
        let width = self.layers.iter().map(|layer| name(layer).chars().count()).max().unwrap_or(0).max(16);
        let mb = |bytes: usize| bytes as f64 / 1e6;
        writeln!(
            f,
            "{:width$}  {:>13}  {:>10}  {:>10}  {:>9}  {:>9}  {:>7}  {:>10}",
            "layer", "out x in", "MB before", "MB after", "error", "worst row", "to zero", "saturating"
        )?;
        for layer in &self.layers {
            let shape = format!("{}x{}", layer.out_features, layer.in_features);
            let (before, after) = (mb(layer.bytes_before), mb(layer.bytes_after));
            write!(f, "{:width$}  {shape:>13}  {before:>10.3}  {after:>10.3}", name(layer))?;
            let because = if layer.evidence.is_empty() { "" } else { ": " };
            match &layer.outcome {
                Ok(w) => {
                    let (error, worst) = (w.relative_error, w.worst_row_error);
                    let (zeroed, saturating) = (100.0 * w.zeroed_share, 100.0 * w.saturating_share);
                    write!(f, "  {error:>9.5}  {worst:>9.5}  {zeroed:>6.1}%  {saturating:>9.3}%")?;
                    writeln!(
                        f,
                        "{}",
                        if layer.evidence.is_empty() {
                            String::new()
                        } else {
                            format!("  {}", printable(&layer.evidence))
                        }
                    )?;
                }
                Err(skipped) => writeln!(f, "  left: {skipped}{because}{}", printable(&layer.evidence))?,
            }
        }
        let (before, after) = self.bytes();
        let of = |embedding: bool, quantized: bool| {
            let of_kind = |layer: &LayerReport| (layer.kind == LayerKind::Embedding) == embedding;
            self.layers.iter().filter(|layer| of_kind(layer) && (layer.outcome.is_ok() || !quantized)).count()
        };
        let kind = if self.scheme == LinearScheme::Fp16 { "fp16" } else { "int8" };
        let mut total = format!("{} of {} in {kind}", of(false, true), of(false, false));
        if let Some(format) = self.embeddings {
            let (quantized, all) = (of(true, true), of(true, false));
            total += &format!(", embeddings: {quantized} of {all} in {format}");
        }
        writeln!(f, "{total:width$}  {:>13}  {:>10.3}  {:>10.3}", "", mb(before), mb(after))?;
        writeln!(f, "{}", self.scheme)?;
        let better = self.layers.iter().filter_map(|layer| {
            let about = layer.outcome.as_ref().ok()?;
            Some((name(layer), about, about.better?))
        });
        for (name, about, better) in better {
            writeln!(
                f,
                "{name} loses much: by {} its error is {:.5}, of its worst row {:.5}, not {:.5} and {:.5}",
                better.scheme,
                better.relative_error,
                better.worst_row_error,
                about.relative_error,
                about.worst_row_error
            )?;
        }
        Ok(())
    }
}

/// A name or a text from a file as it is safe to print: control characters are escaped.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}
