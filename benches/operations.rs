//! The three operations, loading a file, and a layer's forms, for developers: each checks its answer first.
//!
//! `cargo bench --bench operations`, with parts of names after `--` to choose by.

use fbgemm::{Int8Scheme, Linear, ModelFile, QuantizeOptions, QuantizedLinear, quantize_modules, quantize_weight};
use fbgemm_testkit::compare::relative_error;
use fbgemm_testkit::random::normal;
use fbgemm_testkit::reference::linear_f64;
use fbgemm_testkit::timing::medians;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

const SHAPES: [(usize, usize); 3] = [(64, 64), (384, 1536), (1024, 1024)];

/// Times what was chosen, and prints a line for each.
struct Bench {
    /// Parts of names; none: all.
    chosen: Vec<String>,
    quick: bool,
}

impl Bench {
    fn from_arguments() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        // `cargo test` runs it without `--bench`.
        let quick = !arguments.iter().any(|a| a == "--bench");
        Self { chosen: arguments.into_iter().filter(|a| !a.starts_with('-')).collect(), quick }
    }

    /// The median time of a call, and how much of `work`, counted in `unit`, it does in a second.
    fn run<T>(&self, name: &str, work: usize, unit: &str, mut call: impl FnMut() -> T) {
        if !self.chosen.is_empty() && !self.chosen.iter().any(|part| name.contains(part.as_str())) {
            return;
        }
        let (repetitions, sample) = if self.quick { (1, Duration::ZERO) } else { (31, Duration::from_millis(2)) };
        let [time] = medians(repetitions, sample, [&mut || drop(black_box(call()))]);
        let billions = work as f64 / time.as_secs_f64() / 1e9;
        println!("{name:<48} {:>10.2} us {billions:>8.2} G {unit}/s", time.as_secs_f64() * 1e6);
    }
}

/// ‖W − scale·(q − zero_point)‖∞ is at most half a step, but for rounding.
fn quantize(bench: &Bench) {
    for (n, k) in SHAPES {
        let weight = normal(n * k, 1, 0.5);
        let q = quantize_weight(&weight, n, k).unwrap();
        let real = |q8: i8| q.scale() * (i32::from(q8) - q.zero_point()) as f32;
        assert!(weight.iter().zip(q.data()).all(|(w, &q8)| (w - real(q8)).abs() < 0.51 * q.scale()));
        let call = || quantize_weight(black_box(&weight), n, k).unwrap();
        bench.run(&format!("quantize_weight {n}x{k}"), n * k, "weights", call);
    }
}

fn pack(bench: &Bench) {
    for (n, k) in SHAPES {
        let q = quantize_weight(&normal(n * k, 1, 0.5), n, k).unwrap();
        assert_eq!(q.pack().unwrap().unpack().unwrap(), q.data());
        let call = || fbgemm::pack_matrix(black_box(q.data()), k, n).unwrap();
        bench.run(&format!("pack_matrix {n}x{k}"), n * k, "weights", call);
    }
}

fn linear(bench: &Bench) {
    for (n, k) in SHAPES {
        let (weight, bias) = (normal(n * k, 1, 0.5), normal(n, 2, 0.5));
        let q = quantize_weight(&weight, n, k).unwrap();
        let packed = q.pack().unwrap();
        let layer = QuantizedLinear::new(&weight, Some(bias.clone()), n, k, Int8Scheme::pytorch()).unwrap();
        for m in [1, 8, 64] {
            let input = normal(m * k, 3, 0.5);
            let mut output = vec![0f32; m * n];
            layer.forward_into(&input, &mut output).unwrap();
            check(&weight, &bias, &input, &output, k);
            assert_eq!(output, fbgemm::linear_int8_weight(&input, &q, &packed, Some(&bias)).unwrap());
            let run = |form: &str, call: &mut dyn FnMut()| {
                bench.run(&format!("{form}, {m} rows of {n}x{k}"), m * n * k, "multiply-adds", call);
            };
            run("forward_into", &mut || layer.forward_into(black_box(&input), &mut output).unwrap());
            run("linear_int8_weight", &mut || {
                black_box(fbgemm::linear_int8_weight(black_box(&input), &q, &packed, Some(&bias)).unwrap());
            });
        }
    }
}

/// Against float64.
fn check(weight: &[f32], bias: &[f32], input: &[f32], output: &[f32], k: usize) {
    let error = relative_error(output, &linear_f64(input, weight, k, bias));
    // On CPUs without VNNI sums of two products are clamped, which is PyTorch's answer there, too.
    let bound = if fbgemm::cpu_support().unwrap().sums_pairs_exactly() { 0.05 } else { 0.6 };
    assert!(error < bound, "relative error {error}");
}

/// A model of 12 layers from a file's bytes to packed layers, by one thread and by two.
fn load(bench: &Bench) {
    let (n, k) = (768, 768);
    let layer = |i| Linear::new(normal(n * k, i, 0.5), Some(normal(n, i, 0.5)), n, k).unwrap();
    let mut model: BTreeMap<String, Linear> = (0..12).map(|i| (format!("layer.{i}"), layer(i))).collect();
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench.safetensors");
    fbgemm::save_modules(&model, &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let loaded = ModelFile::parse(&bytes).unwrap().load_quantized(2).unwrap();
    let input = normal(k, 3, 0.5);
    for (name, layer) in &loaded {
        assert_eq!(layer.forward(&input), model[name].forward(&input));
    }
    for threads in [1, 2] {
        let call = || ModelFile::parse(black_box(&bytes)).unwrap().load_quantized(threads).unwrap();
        bench.run(&format!("load 12 layers of {n}x{k}, {threads} threads"), bytes.len(), "bytes", call);
    }
    bench.run("save", bytes.len(), "bytes", || fbgemm::save_modules(&model, &[], &path).unwrap());
}

fn main() {
    let bench = Bench::from_arguments();
    println!("FBGEMM uses {}.", fbgemm::cpu_support().expect("a CPU that FBGEMM supports"));
    quantize(&bench);
    pack(&bench);
    linear(&bench);
    load(&bench);
}
