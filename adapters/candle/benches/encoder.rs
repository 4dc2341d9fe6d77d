//! all-MiniLM-L6-v2 as candle models are written, in fp32 and of this package's layers: lines for `fbgemm bench --encoder
//! --peers FILE`, which measures the encoder that is made for these layers.
//!
//! `cargo bench -p fbgemm-candle --bench encoder > FILE`, with `RAYON_NUM_THREADS=1` for one thread. Mixed texts run one by
//! one, without padding.

#[path = "../examples/bert/model.rs"]
mod model;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use fbgemm_testkit::minilm::{Files, timed_text};
use fbgemm_testkit::timing::least;
use model::{Bert, Kind};
use std::time::Duration;

fn main() -> Result<()> {
    // As a test: once, that it runs.
    let test = !std::env::args().any(|argument| argument == "--bench");
    let files = Files::fetch(&mut |_, _| ()).map_err(candle_core::Error::msg)?;
    let bytes = std::fs::read(&files.checkpoint)?;
    let vb = VarBuilder::from_slice_safetensors(&bytes, DType::F32, &Device::Cpu)?;
    let threads = candle_core::utils::get_num_threads();
    for (name, kind) in [("candle-fp32", Kind::Float), ("candle-fbgemm", Kind::Quantized)] {
        let model = Bert::load(kind, vb.clone())?;
        for tokens in [Some(16), Some(64), Some(128), None] {
            for texts in [1, 8, 32] {
                let calls = calls(tokens, texts)?;
                let run = || calls.iter().try_for_each(|ids| model.embed(ids).map(drop));
                run()?;
                let (samples, sample) = if test { (1, Duration::ZERO) } else { (6, Duration::from_millis(60)) };
                let best = least(samples, sample, || run().unwrap()).map(|seconds| seconds * 1e3);
                let length = tokens.map_or("mixed".to_string(), |tokens| tokens.to_string());
                println!("{name} {threads} {length} {texts} wall_ms {:.3} cpu_ms {:.3}", best[0], best[1]);
                if test {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// The texts of `fbgemm bench --encoder`: all in one call, or mixed ones each in its own.
fn calls(tokens: Option<usize>, texts: usize) -> Result<Vec<Tensor>> {
    let ids = |text| timed_text(tokens, text);
    match tokens {
        Some(tokens) => Ok(vec![Tensor::from_iter((0..texts).flat_map(ids), &Device::Cpu)?.reshape((texts, tokens))?]),
        None => (0..texts).map(|text| Tensor::from_iter(ids(text), &Device::Cpu)?.unsqueeze(0)).collect(),
    }
}
