//! A linear layer in candle: quantized against candle's own in fp32, and the module against the layer within it.
//!
//! `cargo bench -p fbgemm-candle`; `quick` after `--` for few repetitions, which checks results alone. candle uses as
//! many threads as `RAYON_NUM_THREADS` says, or as there are cores; so does the module here where they are several.

use candle_core::{Device, Tensor};
use candle_nn::{Linear, Module};
use fbgemm::Int8Scheme;
use fbgemm_candle::QuantizedLinear;
use fbgemm_testkit::compare::relative_error;
use fbgemm_testkit::random::normal;
use fbgemm_testkit::timing::medians;
use std::time::Duration;

/// Shorter calls are repeated until they take about this long.
const SAMPLE: Duration = Duration::from_micros(300);

fn main() -> candle_core::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|argument| argument == "quick") || !arguments.iter().any(|a| a == "--bench");
    let repetitions = if quick { 3 } else { 301 };
    let threads = candle_core::utils::get_num_threads();
    println!("Medians of {repetitions}, in turn; {threads} threads. us, and how many times faster than candle's fp32;");
    println!("`module adds`: the module's time over that of the layer's `forward_into` to the same buffer each time.");
    println!(
        "{:>10} {:>5} {:>11} {:>11} {:>8} {:>11} {:>12}",
        "out x in", "rows", "candle fp32", "module int8", "faster", "layer int8", "module adds"
    );
    for (n, k) in [(384, 384), (1536, 384), (384, 1536)] {
        let (weight, bias) = (normal(n * k, 1, 0.05), normal(n, 2, 0.5));
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
        let float = Linear::new(tensor(&weight, &[n, k])?, Some(tensor(&bias, &[n])?));
        let module = QuantizedLinear::from_linear(&float, Int8Scheme::accurate())?;
        let module = if threads > 1 { module.with_rayon() } else { module };
        let layer = module.layer();
        for rows in [1, 8, 32, 128] {
            let values = normal(rows * k, 3, 1.0);
            let x = tensor(&values, &[rows, k])?;
            let exact = float.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
            let error = relative_error(&module.forward(&x)?.flatten_all()?.to_vec1::<f32>()?, &exact);
            assert!(error < 0.03, "{error} at {rows} rows of {n}x{k}");
            let mut output = vec![0f32; rows * n];
            let [candle, ours, inner] = medians(
                repetitions,
                SAMPLE,
                [&mut || drop(float.forward(&x).unwrap()), &mut || drop(module.forward(&x).unwrap()), &mut || {
                    if threads > 1 {
                        layer.forward_rayon(&values, &mut output).unwrap();
                    } else {
                        layer.forward_into(&values, &mut output).unwrap();
                    }
                }],
            )
            .map(|time| time.as_secs_f64() * 1e6);
            let shape = format!("{n}x{k}");
            let (faster, adds) = (candle / ours, ours - inner);
            println!(
                "{shape:>10} {rows:>5} {candle:>11.1} {ours:>11.1} {faster:>7.2}x {inner:>11.1} {adds:>8.1} ({:>2.0} %)",
                100.0 * adds / inner
            );
        }
    }
    Ok(())
}
