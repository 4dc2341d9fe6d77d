//! all-MiniLM-L6-v2 as candle models are written, in fp32 and of this package's layers: lines for `fbgemm bench --encoder
//! --peers FILE`, which measures the encoder that is made for these layers.
//!
//! `cargo bench -p fbgemm-candle --bench encoder > FILE`, with `RAYON_NUM_THREADS=1` for one thread. Mixed texts run one by
//! one, without padding.

#[path = "../examples/bert/model.rs"]
mod model;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use fbgemm_testkit::minilm::Files;
use model::{Bert, Kind};
use std::time::{Duration, Instant};

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
                let mut best = [f64::MAX; 2];
                for _ in 0..samples {
                    let (start, before, mut runs) = (Instant::now(), processor_time(), 0);
                    while runs == 0 || start.elapsed() < sample {
                        run()?;
                        runs += 1;
                    }
                    let each = |seconds: f64| seconds / f64::from(runs) * 1e3;
                    best = [
                        best[0].min(each(start.elapsed().as_secs_f64())),
                        best[1].min(each(processor_time() - before)),
                    ];
                }
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
    let ids = |text: usize| {
        let length = tokens.unwrap_or(8 + text * 53 % 121);
        (0..length).map(move |i| match i {
            0 => 101,
            _ if i + 1 == length => 102,
            _ => (1000 + (text * 131 + i * 7919) % 20_000) as u32,
        })
    };
    match tokens {
        Some(tokens) => Ok(vec![Tensor::from_iter((0..texts).flat_map(ids), &Device::Cpu)?.reshape((texts, tokens))?]),
        None => (0..texts).map(|text| Tensor::from_iter(ids(text), &Device::Cpu)?.unsqueeze(0)).collect(),
    }
}

/// Of all threads of this process, in seconds.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
