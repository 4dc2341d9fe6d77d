//! Which layers gain from int8 on this machine, and which to leave in fp32.

use crate::{Linear, LinearModules, QuantizedLinear, Result};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wildmatch::WildMatch;

/// How long one layer takes in int8 and in fp32 at one batch size.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTiming {
    /// The layer's dotted name.
    pub name: String,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// Rows of input.
    pub batch: usize,
    /// A call in int8.
    pub int8: Duration,
    /// A call in fp32.
    pub fp32: Duration,
}

/// What the timings of one layer say.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAdvice {
    /// The layer's dotted name.
    pub name: String,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// Batch sizes, ascending, and how many times faster than fp32 int8 is at each.
    pub speed_ups: Vec<(usize, f64)>,
}

impl LayerAdvice {
    /// Whether int8 is faster, over all the batch sizes taken together.
    pub fn gains(&self) -> bool {
        self.mean_speed_up() > 1.0
    }

    /// The geometric mean over the batch sizes.
    pub fn mean_speed_up(&self) -> f64 {
        let logarithms: f64 = self.speed_ups.iter().map(|(_, speed_up)| speed_up.ln()).sum();
        (logarithms / self.speed_ups.len() as f64).exp()
    }
}

/// Which layers gain from int8, and which lose. Displayed, it is an aligned table and the options to take.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Advice {
    /// All layers, in the order of the timings.
    pub layers: Vec<LayerAdvice>,
    /// Patterns for [`QuantizeOptions::exclude`](crate::QuantizeOptions::exclude) that match the layers that lose and
    /// no others.
    pub exclude: Vec<String>,
}

impl Advice {
    /// From timings of a model's layers, each at the batch sizes that the service sees.
    pub fn of(timings: &[LayerTiming]) -> Self {
        let mut layers: Vec<LayerAdvice> = Vec::new();
        for timing in timings {
            let speed_up = timing.fp32.as_secs_f64() / timing.int8.as_secs_f64().max(1e-12);
            let index = layers.iter().position(|layer| layer.name == timing.name).unwrap_or_else(|| {
                let (out_features, in_features) = (timing.out_features, timing.in_features);
                layers.push(LayerAdvice { name: timing.name.clone(), out_features, in_features, speed_ups: vec![] });
                layers.len() - 1
            });
            layers[index].speed_ups.push((timing.batch, speed_up));
        }
        layers.iter_mut().for_each(|layer| layer.speed_ups.sort_by_key(|(batch, _)| *batch));
        let names = |gains: bool| {
            let chosen = layers.iter().filter(move |layer| layer.gains() == gains);
            chosen.map(|layer| layer.name.as_str()).collect::<Vec<_>>()
        };
        let exclude = patterns(&names(false), &names(true));
        Self { layers, exclude }
    }
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0).max(5);
        let mut batches: Vec<usize> =
            self.layers.iter().flat_map(|layer| layer.speed_ups.iter().map(|&(batch, _)| batch)).collect();
        batches.sort_unstable();
        batches.dedup();
        write!(f, "{:width$}  {:>13}", "layer", "out x in")?;
        batches.iter().try_for_each(|batch| write!(f, "  {:>9}", format!("batch {batch}")))?;
        writeln!(f, "  int8")?;
        for layer in &self.layers {
            let shape = format!("{}x{}", layer.out_features, layer.in_features);
            write!(f, "{:width$}  {shape:>13}", layer.name)?;
            for batch in &batches {
                let speed_up = layer.speed_ups.iter().find(|(at, _)| at == batch);
                let cell = speed_up.map_or_else(|| "-".to_string(), |(_, speed_up)| format!("{speed_up:.2}x"));
                write!(f, "  {cell:>9}")?;
            }
            let loses: Vec<String> =
                layer.speed_ups.iter().filter(|(_, s)| *s < 1.0).map(|(batch, _)| batch.to_string()).collect();
            let verdict = match (layer.gains(), loses.is_empty()) {
                (true, true) => "gains".to_string(),
                (true, false) => format!("gains, but loses at batch {}", loses.join(", ")),
                (false, _) => format!("loses at batch {}", loses.join(", ")),
            };
            writeln!(f, "  {verdict}")?;
        }
        let losing = self.layers.iter().filter(|layer| !layer.gains()).count();
        match &self.exclude[..] {
            [] => writeln!(f, "Quantize all {}: each gains.", self.layers.len()),
            patterns => {
                let options: Vec<String> = patterns.iter().map(|pattern| format!("--exclude '{pattern}'")).collect();
                writeln!(f, "Leave {losing} of {} in fp32: {}", self.layers.len(), options.join(" "))
            }
        }
    }
}

/// Patterns, each as short as can be, that match all of `these` names and none of `those`.
fn patterns(these: &[&str], those: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in these {
        if found.iter().any(|pattern| WildMatch::new(pattern).matches(name)) {
            continue;
        }
        // Its last part under any parents, its last two, and so on; then the very name.
        let suffixes = name.rmatch_indices('.').map(|(dot, _)| format!("*{}", &name[dot..]));
        let fits = |pattern: &String| !those.iter().any(|other| WildMatch::new(pattern).matches(other));
        found.push(suffixes.into_iter().find(fits).unwrap_or_else(|| name.to_string()));
    }
    found
}

/// Times a model's linear layers on this machine and thread, in int8 and in fp32 (the `gemm` crate, as [`Linear`]
/// computes), at the batch sizes that the service sees: which layers to quantize, and which to leave. It takes
/// some milliseconds for each shape and batch size; layers of equal shape are timed once, with made-up weights, which
/// make no difference to the time.
///
/// ```
/// # use fbgemm::{Linear, QuantizeOptions, advise_linear_modules, quantize_linear_modules};
/// let mut model = vec![Linear::new(vec![0.5; 256 * 256], None, 256, 256)?, Linear::new(vec![0.5; 16], None, 4, 4)?];
/// let advice = advise_linear_modules(&model, &[1, 8])?;
/// println!("{advice}");
/// let options = advice.exclude.iter().fold(QuantizeOptions::new(), QuantizeOptions::exclude);
/// # if advice.layers.iter().any(fbgemm::LayerAdvice::gains) {
/// quantize_linear_modules(&mut model, &options)?;
/// # }
/// # Ok::<(), fbgemm::Error>(())
/// ```
///
/// # Errors
/// Those of [`quantize_weight`](crate::quantize_weight) for the layers' shapes, and of
/// [`cpu_support`](crate::cpu_support).
pub fn advise_linear_modules(model: &(impl LinearModules + ?Sized), batches: &[usize]) -> Result<Advice> {
    let mut layers = Vec::new();
    model.visit_linear("", &mut |name, layer| {
        layers.push((name.to_string(), layer.out_features(), layer.in_features()));
    });
    let mut timed: BTreeMap<(usize, usize, usize), (Duration, Duration)> = BTreeMap::new();
    let mut timings = Vec::new();
    for (name, n, k) in &layers {
        for &batch in batches.iter().filter(|&&batch| batch > 0) {
            let (int8, fp32) = match timed.get(&(*n, *k, batch)) {
                Some(known) => *known,
                None => *timed.entry((*n, *k, batch)).or_insert(time(*n, *k, batch)?),
            };
            let (name, out_features, in_features) = (name.clone(), *n, *k);
            timings.push(LayerTiming { name, out_features, in_features, batch, int8, fp32 });
        }
    }
    Ok(Advice::of(&timings))
}

/// The medians of a call in int8 and in fp32, both in turn.
fn time(n: usize, k: usize, batch: usize) -> Result<(Duration, Duration)> {
    const REPETITIONS: usize = 11;
    const SAMPLE: Duration = Duration::from_micros(50);
    let spread = |len: usize| (0..len).map(|i| (i * 31 % 251) as f32 / 125.0 - 1.0).collect::<Vec<f32>>();
    let (weight, input) = (spread(n * k), spread(batch * k));
    let int8 = QuantizedLinear::new(&weight, None, n, k)?;
    let fp32 = Linear::new(weight, None, n, k)?;
    let mut output = vec![0f32; batch * n];
    let mut times = [Vec::new(), Vec::new()];
    let mut calls = [1, 1];
    for repetition in 0..=REPETITIONS {
        for (i, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            for _ in 0..calls[i] {
                if i == 0 { int8.forward_into(&input, &mut output)? } else { fp32.forward_into(&input, &mut output)? }
            }
            let each = start.elapsed() / calls[i];
            // The first is the warm-up, and tells how many calls the clock can tell apart.
            match repetition {
                0 => calls[i] = (SAMPLE.as_nanos() / each.as_nanos().max(1)) as u32 + 1,
                _ => times.push(each),
            }
        }
    }
    let [int8, fp32] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    Ok((int8, fp32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(name: &str, batch: usize, int8: u64, fp32: u64) -> LayerTiming {
        let (int8, fp32) = (Duration::from_micros(int8), Duration::from_micros(fp32));
        LayerTiming { name: name.to_string(), out_features: 8, in_features: 8, batch, int8, fp32 }
    }

    #[test]
    fn layers_that_lose_get_the_shortest_patterns_that_spare_the_others() {
        let advice = Advice::of(&[
            timing("a.dense", 1, 10, 20),
            timing("a.gate", 1, 30, 20),
            timing("a.gate", 8, 30, 20),
            timing("b.gate", 1, 30, 20),
            timing("b.out.dense", 1, 30, 20),
            timing("head", 8, 30, 20),
            timing("head", 1, 30, 20),
        ]);
        assert_eq!(advice.exclude, ["*.gate", "*.out.dense", "head"]);
        assert_eq!(advice.layers[4].speed_ups.iter().map(|(batch, _)| *batch).collect::<Vec<_>>(), [1, 8]);
        let said = advice.to_string();
        assert!(
            said.contains("Leave 4 of 5 in fp32: --exclude '*.gate' --exclude '*.out.dense' --exclude 'head'"),
            "{said}"
        );
        assert!(said.contains("loses at batch 1, 8") && said.contains("0.67x"), "{said}");
    }

    #[test]
    fn the_batch_sizes_are_weighed_together() {
        let mixed = |slow| Advice::of(&[timing("a", 1, 10, 30), timing("a", 64, slow, 10)]);
        assert!(mixed(20).layers[0].gains() && !mixed(40).layers[0].gains());
        let said = mixed(20).to_string();
        assert!(
            said.contains("gains, but loses at batch 64") && said.contains("Quantize all 1: each gains."),
            "{said}"
        );
    }

    #[test]
    fn a_model_is_timed_at_every_batch_size() {
        let layer = || Linear::new(vec![0.5; 48 * 32], None, 48, 32).unwrap();
        let advice = advise_linear_modules(&vec![layer(), layer()], &[1, 4]).unwrap();
        assert_eq!(advice.layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["0", "1"]);
        assert_eq!(advice.layers[0].speed_ups, advice.layers[1].speed_ups, "timed once");
        assert!(advice.layers[0].speed_ups.iter().all(|(_, speed_up)| *speed_up > 0.0));
    }
}
