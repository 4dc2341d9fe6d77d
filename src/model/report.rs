//! What quantizing did to each layer.

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
    /// Its name says that it is an embedding: rows are looked up, not multiplied.
    Embedding,
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
        })
    }
}

/// What became of one layer.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct LayerReport {
    /// Its dotted name.
    pub name: String,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// Its bytes in memory before.
    pub bytes_before: usize,
    /// And after.
    pub bytes_after: usize,
    /// What was gained and lost, or why it was left.
    pub outcome: std::result::Result<WeightReport, Skipped>,
}

/// What quantizing did to a weight.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightReport {
    /// ‖W − scale · (q − zero_point)‖ / ‖W‖; 0 for a weight of zeros.
    pub relative_error: f64,
    /// The share, 0 to 1, of pairs of neighbouring weights whose products can saturate on CPUs without VNNI
    /// ([`QuantizedWeight::saturating_pairs`]).
    pub saturating_share: f64,
}

impl WeightReport {
    /// Compares a weight with its quantized form, which must have the same shape.
    pub fn of(weight: &[f32], quantized: &QuantizedWeight) -> Self {
        assert_eq!(weight.len(), quantized.data().len());
        let (mut error, mut size) = (0.0, 0.0);
        let k = quantized.in_features();
        // One for all rows, or each row's own.
        let parameters = quantized.scales().iter().zip(quantized.zero_points()).cycle();
        for ((w, q), (&scale, zero_point)) in weight.chunks(k).zip(quantized.data().chunks(k)).zip(parameters) {
            for (&w, &q) in w.iter().zip(q) {
                let (w, q) = (f64::from(w), f64::from(i32::from(q) - zero_point));
                let difference = w - f64::from(scale) * q;
                error += difference * difference;
                size += w * w;
            }
        }
        let pairs = quantized.out_features() * quantized.in_features().div_ceil(2);
        Self {
            relative_error: if size == 0.0 { 0.0 } else { (error / size).sqrt() },
            saturating_share: quantized.saturating_pairs() as f64 / pairs as f64,
        }
    }

    /// Compares a weight with its rounded form, of the same length.
    pub(crate) fn of_rounded(weight: &[f32], rounded: &[f32]) -> Self {
        let (mut error, mut size) = (0.0, 0.0);
        for (&w, &rounded) in weight.iter().zip(rounded) {
            let (w, rounded) = (f64::from(w), f64::from(rounded));
            error += (w - rounded) * (w - rounded);
            size += w * w;
        }
        Self { relative_error: if size == 0.0 { 0.0 } else { (error / size).sqrt() }, saturating_share: 0.0 }
    }

    /// The same, the input being quantized so: to seven bits, no pair saturates.
    pub(crate) fn with_input(self, scheme: InputScheme) -> Self {
        Self { saturating_share: if scheme.never_saturates() { 0.0 } else { self.saturating_share }, ..self }
    }
}

/// What [`quantize_linear_modules`](crate::quantize_linear_modules) did, layer by layer. Displayed, it is an aligned table.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct QuantizeReport {
    /// Every linear layer of the model, in the order of the walk.
    pub layers: Vec<LayerReport>,
    /// What the layers were quantized to.
    pub scheme: LinearScheme,
}

impl QuantizeReport {
    /// Of no layers yet.
    pub(crate) fn new(scheme: LinearScheme) -> Self {
        Self { layers: Vec::new(), scheme }
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
        let width = self.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0).max(16);
        let mb = |bytes: usize| bytes as f64 / 1e6;
        writeln!(
            f,
            "{:width$}  {:>13}  {:>10}  {:>10}  {:>9}  {:>10}",
            "layer", "out x in", "MB before", "MB after", "error", "saturating"
        )?;
        for layer in &self.layers {
            let shape = format!("{}x{}", layer.out_features, layer.in_features);
            let (before, after) = (mb(layer.bytes_before), mb(layer.bytes_after));
            write!(f, "{:width$}  {shape:>13}  {before:>10.3}  {after:>10.3}", layer.name)?;
            match &layer.outcome {
                Ok(w) => writeln!(f, "  {:>9.5}  {:>9.3}%", w.relative_error, 100.0 * w.saturating_share)?,
                Err(skipped) => writeln!(f, "  fp32: {skipped}")?,
            }
        }
        let (before, after) = self.bytes();
        let kind = if self.scheme == LinearScheme::Fp16 { "fp16" } else { "int8" };
        let name = format!("{} of {} in {kind}", self.quantized().count(), self.layers.len());
        writeln!(f, "{name:width$}  {:>13}  {:>10.3}  {:>10.3}", "", mb(before), mb(after))?;
        writeln!(f, "{}", self.scheme)
    }
}
