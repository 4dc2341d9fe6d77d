//! Which layers gain from int8 on this machine, and which to leave in fp32.

use crate::table;
use serde_json::{Value, json};
use wildmatch::WildMatch;

/// One layer at one batch size.
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
    /// How many times faster than fp32 int8 is.
    pub speed_up: f64,
}

/// What the timings of one layer say.
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

/// Which layers gain from int8, and which lose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Advice {
    /// All layers, in the order of the timings.
    pub layers: Vec<LayerAdvice>,
    /// Patterns for `fbgemm quantize --exclude` that match the layers that lose and no others.
    pub exclude: Vec<String>,
}

impl Advice {
    /// From timings of a model's layers, each at the batch sizes that the service sees.
    pub fn of(timings: &[LayerTiming]) -> Self {
        let mut layers: Vec<LayerAdvice> = Vec::new();
        for timing in timings {
            let index = layers.iter().position(|layer| layer.name == timing.name).unwrap_or_else(|| {
                let (out_features, in_features) = (timing.out_features, timing.in_features);
                layers.push(LayerAdvice { name: timing.name.clone(), out_features, in_features, speed_ups: vec![] });
                layers.len() - 1
            });
            layers[index].speed_ups.push((timing.batch, timing.speed_up));
        }
        layers.iter_mut().for_each(|layer| layer.speed_ups.sort_by_key(|(batch, _)| *batch));
        let names = |gains: bool| {
            let chosen = layers.iter().filter(move |layer| layer.gains() == gains);
            chosen.map(|layer| layer.name.as_str()).collect::<Vec<_>>()
        };
        let exclude = patterns(&names(false), &names(true));
        Self { layers, exclude }
    }

    /// For people: a table, and the options to take.
    pub fn text(&self) -> String {
        let mut batches: Vec<usize> =
            self.layers.iter().flat_map(|layer| layer.speed_ups.iter().map(|&(batch, _)| batch)).collect();
        batches.sort_unstable();
        batches.dedup();
        let mut heading = vec!["layer".to_string(), "out x in".to_string()];
        heading.extend(batches.iter().map(|batch| format!("batch {batch}")));
        heading.push("int8".to_string());
        let mut rows = vec![heading];
        for layer in &self.layers {
            let mut row = vec![layer.name.clone(), format!("{}x{}", layer.out_features, layer.in_features)];
            row.extend(batches.iter().map(|batch| {
                let speed_up = layer.speed_ups.iter().find(|(at, _)| at == batch);
                speed_up.map_or_else(|| "-".to_string(), |(_, speed_up)| format!("{speed_up:.2}x"))
            }));
            let loses: Vec<String> =
                layer.speed_ups.iter().filter(|(_, s)| *s < 1.0).map(|(batch, _)| batch.to_string()).collect();
            row.push(match (layer.gains(), loses.is_empty()) {
                (true, true) => "gains".to_string(),
                (true, false) => format!("gains, but loses at batch {}", loses.join(", ")),
                (false, _) => format!("loses at batch {}", loses.join(", ")),
            });
            rows.push(row);
        }
        let losing = self.layers.iter().filter(|layer| !layer.gains()).count();
        table::aligned(&rows, false)
            + &match &self.exclude[..] {
                [] => format!("Quantize all {}: each gains.\n", self.layers.len()),
                patterns => {
                    let options: Vec<String> =
                        patterns.iter().map(|pattern| format!("--exclude '{pattern}'")).collect();
                    format!("Leave {losing} of {} in fp32: {}\n", self.layers.len(), options.join(" "))
                }
            }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let layers = self.layers.iter().map(|layer| {
            let speed_ups = layer.speed_ups.iter().map(|(batch, faster)| json!({"batch": batch, "speed_up": faster}));
            json!({"layer": layer.name, "gains": layer.gains(), "speed_ups": speed_ups.collect::<Vec<_>>()})
        });
        json!({"layers": layers.collect::<Vec<_>>(), "exclude": self.exclude})
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

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(name: &str, batch: usize, int8: u64, fp32: u64) -> LayerTiming {
        let speed_up = fp32 as f64 / int8 as f64;
        LayerTiming { name: name.to_string(), out_features: 8, in_features: 8, batch, speed_up }
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
        let said = advice.text();
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
        let said = mixed(20).text();
        assert!(
            said.contains("gains, but loses at batch 64") && said.contains("Quantize all 1: each gains."),
            "{said}"
        );
    }
}
