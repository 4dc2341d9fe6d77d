//! What must not end the process or lose a file: no memory, interrupted and short reads and writes, a killed save, many
//! threads on one handle, a long life, forks, exits and small stacks.
//!
//! A binary of its own: it puts itself before functions of the C library, for all of the process.

mod disk;
mod memory;
mod process;
mod system;
mod threads;

use fbgemm::{
    Embedding, EmbeddingFormat, Fp16Linear, GruCell, Int8Scheme, Linear, Lstm, LstmCell, QuantizeOptions,
    QuantizedLinear, quantize_modules,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::empty_folder;
use fbgemm_testkit::random::normal;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
}

/// A number that the long mode sets.
fn number(variable: &str, otherwise: usize) -> usize {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |set| set.parse().unwrap_or_else(|_| panic!("{variable}={set} is no number")))
}

/// One layer of each kind, and what they answer.
struct Everything {
    linear: Vec<Linear>,
    embeddings: Vec<Embedding>,
    lstm: Lstm,
    gru: GruCell,
}

impl Everything {
    const N: usize = 40;
    const K: usize = 96;

    fn new() -> Self {
        let (n, k) = (Self::N, Self::K);
        let weight = normal(n * k, 1, 0.2);
        let bias = Some(normal(n, 2, 0.2));
        let int8 = |scheme| QuantizedLinear::new(&weight, bias.clone(), n, k, scheme).unwrap();
        let fixed = int8(Int8Scheme::pytorch());
        let static_input = fbgemm::InputScheme::new().static_params(0.02, 128).unwrap();
        let linear = vec![
            int8(Int8Scheme::pytorch()).into(),
            int8(Int8Scheme::accurate()).into(),
            fixed.with_input(static_input).into(),
            Fp16Linear::new(&weight, bias.clone(), n, k).unwrap().into(),
            Linear::new(weight.clone(), bias, n, k).unwrap(),
        ];
        let table = Embedding::new(normal(50 * 32, 3, 1.0), 50, 32).unwrap();
        let formats = [EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4];
        let mut embeddings = vec![table.clone()];
        embeddings.extend(formats.map(|format| table.quantize(format).unwrap()));
        let part = |n: usize, k: usize, seed| Linear::new(normal(n * k, seed, 0.2), Some(vec![0.1; n]), n, k).unwrap();
        let cell = |k| LstmCell::new(part(4 * 16, k, 4), part(4 * 16, 16, 5)).unwrap();
        let mut lstm = Lstm::bidirectional(vec![cell(24), cell(24)]).unwrap();
        let mut gru = GruCell::new(part(3 * 16, 24, 6), part(3 * 16, 16, 7)).unwrap();
        quantize_modules(&mut lstm, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
        quantize_modules(&mut gru, &QuantizeOptions::new(fbgemm::LinearScheme::Fp16)).unwrap();
        Self { linear, embeddings, lstm, gru }
    }

    /// How many answers there are.
    fn kinds(&self) -> usize {
        self.linear.len() + self.embeddings.len() + 2
    }

    /// The bits that one of them gives.
    fn answer(&self, kind: usize) -> Vec<u32> {
        let input = normal(3 * Self::K, 8, 1.0);
        if let Some(layer) = self.linear.get(kind) {
            return bits(&layer.forward(&input).unwrap());
        }
        let kind = kind - self.linear.len();
        if let Some(layer) = self.embeddings.get(kind) {
            return bits(&layer.forward(&[49i64, 0, 7, 7]).unwrap());
        }
        let mut h = self.lstm.zero_state(2).unwrap();
        if kind == self.embeddings.len() {
            let mut c = h.clone();
            return bits(&self.lstm.forward(&input[..3 * 2 * 24], &mut h, &mut c).unwrap());
        }
        let mut state = vec![0.0; 2 * 16];
        self.gru.forward(&input[..2 * 24], &mut state).unwrap();
        bits(&state)
    }

    fn answers(&self) -> Vec<Vec<u32>> {
        (0..self.kinds()).map(|kind| self.answer(kind)).collect()
    }
}
