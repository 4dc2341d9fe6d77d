//! Which layers gain from int8 on this machine, and which to leave in fp32.

use crate::{Error, FloatLinear, Linear, LinearModules, QuantizedLinear, Result};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
    /// Whether int8 is faster at more than half of the batch sizes, or over all of them taken together.
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
