//! This crate, as a contender: its default, and its other ways to quantize.

use super::OURS;
use super::contender::{Contender, Entry, Layer};
use super::threads::Crew;
use fbgemm::{Fp16Linear, Int8Scheme, QuantizedLinear};
use std::rc::Rc;

/// This crate.
pub fn ours(crew: &Rc<Crew>) -> Entry {
    let crew = crew.clone();
    Entry {
        name: OURS.to_string(),
        int8: true,
        packs: true,
        make: Box::new(move |layer, rows, threads| {
            let layer = quantized(layer)?;
            let tasks = layer.suggested_tasks(rows, threads);
            Ok(Some(Box::new(Ours { layer, tasks, crew: crew.clone() })))
        }),
    }
}

/// This crate's other ways to quantize, on one thread: the same answer on every CPU and in every batch (weights in seven
/// bits, per channel and row), and weights in fp16, which counts as quantized here, not as fp32.
pub fn schemes() -> Vec<Entry> {
    fn entry<T: 'static>(
        name: &str,
        make: impl Fn(Layer) -> fbgemm::Result<T> + 'static,
        run: fn(&T, &[f32], &mut [f32]) -> fbgemm::Result<()>,
    ) -> Entry {
        let make = move |layer: Layer, _, threads| {
            let contender = |layer| Ok(Box::new(Scheme { layer: make(layer)?, run }) as Box<dyn Contender>);
            (threads == 1).then(|| contender(layer)).transpose().map_err(|e: fbgemm::Error| e.chain())
        };
        Entry { name: name.to_string(), int8: true, packs: true, make: Box::new(make) }
    }
    let int8 = |scheme: Int8Scheme| {
        move |layer: Layer| {
            let Layer { weight, bias, out_features, in_features } = layer;
            QuantizedLinear::new(weight, Some(bias.to_vec()), out_features, in_features, scheme)
        }
    };
    // Seven bits with channels of their own: the full range of every channel would saturate on CPUs without VNNI.
    let finest = int8(Int8Scheme::portable());
    vec![
        entry("fbgemm per channel and row", finest, QuantizedLinear::forward_into),
        entry(
            "fbgemm fp16",
            |layer| Fp16Linear::new(layer.weight, Some(layer.bias.to_vec()), layer.out_features, layer.in_features),
            Fp16Linear::forward_into,
        ),
    ]
}

struct Scheme<T> {
    layer: T,
    run: fn(&T, &[f32], &mut [f32]) -> fbgemm::Result<()>,
}

impl<T> Contender for Scheme<T> {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        (self.run)(&self.layer, input, output).map_err(|e| e.chain())
    }
}

/// The layer as this crate quantizes it by default.
pub fn quantized(layer: Layer) -> Result<QuantizedLinear, String> {
    let Layer { weight, bias, out_features, in_features } = layer;
    QuantizedLinear::new(weight, Some(bias.to_vec()), out_features, in_features, Int8Scheme::pytorch())
        .map_err(|e| e.chain())
}

struct Ours {
    layer: QuantizedLinear,
    tasks: usize,
    crew: Rc<Crew>,
}

impl Contender for Ours {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        let Self { layer, tasks, crew } = self;
        layer.forward_tasks(input, output, *tasks, |task| crew.run(task)).map_err(|e| e.chain())
    }
}
