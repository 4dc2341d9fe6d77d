//! Recurrent layers against PyTorch's outputs, against a plain walk over time, in models and files, and with everything
//! that they must refuse.

mod errors;
mod files;
mod golden;
mod properties;
mod speech;

use fbgemm::{Gru, GruCell, Linear, LinearScheme, Lstm, LstmCell, QuantizeOptions, quantize_modules};
use fbgemm_testkit::process::{LIMIT, again, lesser, succeed};
use fbgemm_testkit::random::normal;

/// Set in the processes that this one starts.
const CHILD: &str = "FBGEMM_RS_TEST_CHILD";

#[test]
fn all_of_this_passes_with_every_instruction_set_of_the_cpu() {
    if std::env::var_os(CHILD).is_some() || std::env::var_os(LIMIT).is_some() {
        return;
    }
    for isa in lesser(fbgemm::cpu_support().unwrap()) {
        let said = succeed(again().args(["--test-threads", "2"]).env(CHILD, "1").env(LIMIT, isa.variable()));
        println!("with {isa}: {}", said.lines().rfind(|line| line.starts_with("test result")).unwrap_or_default());
    }
}

/// A linear layer in fp32 with PyTorch's usual size of weights in recurrent layers.
fn linear(out_features: usize, in_features: usize, hidden: usize, seed: u64) -> Linear {
    let deviation = 1.0 / (hidden as f32).sqrt();
    let bias = normal(out_features, seed + 1, deviation);
    Linear::new(normal(out_features * in_features, seed, deviation), Some(bias), out_features, in_features).unwrap()
}

/// Sizes of layers over a sequence.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    input: usize,
    hidden: usize,
    layers: usize,
    both: bool,
}

impl Sizes {
    /// The number of inputs of each cell.
    fn widths(self) -> Vec<usize> {
        let directions = if self.both { 2 } else { 1 };
        let width = |layer| if layer == 0 { self.input } else { directions * self.hidden };
        (0..self.layers * directions).map(|cell| width(cell / directions)).collect()
    }

    fn lstm(self, seed: u64) -> Lstm {
        let Self { hidden, both, .. } = self;
        let cell = |(i, width): (usize, usize)| {
            let seed = seed + 10 * i as u64;
            LstmCell::new(linear(4 * hidden, width, hidden, seed), linear(4 * hidden, hidden, hidden, seed + 5))
                .unwrap()
        };
        let cells = self.widths().into_iter().enumerate().map(cell).collect();
        if both { Lstm::bidirectional(cells) } else { Lstm::new(cells) }.unwrap()
    }

    fn gru(self, seed: u64) -> Gru {
        let Self { hidden, both, .. } = self;
        let cell = |(i, width): (usize, usize)| {
            let seed = seed + 10 * i as u64;
            GruCell::new(linear(3 * hidden, width, hidden, seed), linear(3 * hidden, hidden, hidden, seed + 5)).unwrap()
        };
        let cells = self.widths().into_iter().enumerate().map(cell).collect();
        if both { Gru::bidirectional(cells) } else { Gru::new(cells) }.unwrap()
    }
}

/// The same layers by a scheme.
fn quantized<M: fbgemm::Modules + Clone>(model: &M, scheme: impl Into<LinearScheme>) -> M {
    let mut model = model.clone();
    quantize_modules(&mut model, &QuantizeOptions::new(scheme)).unwrap();
    model
}
