//! The three operations, loading a file, and a layer's forms, for developers: each checks its answer first.
//!
//! `cargo bench --bench operations`, with a filter after `--`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fbgemm::{
    Int8Scheme, Linear, ModelFile, QuantizeOptions, QuantizedLinear, quantize_linear_modules, quantize_weight,
};
use fbgemm_testkit::compare::relative_error;
use fbgemm_testkit::random::normal;
use fbgemm_testkit::reference::linear_f64;
use std::collections::BTreeMap;
use std::hint::black_box;

const SHAPES: [(usize, usize); 3] = [(64, 64), (384, 1536), (1024, 1024)];

/// ‖W − scale·(q − zero_point)‖∞ is at most half a step, but for rounding.
fn quantize(c: &mut Criterion) {
    let mut group = c.benchmark_group("quantize_weight");
    for (n, k) in SHAPES {
        let weight = normal(n * k, 1, 0.5);
        let q = quantize_weight(&weight, n, k).unwrap();
        let real = |q8: i8| q.scale() * (i32::from(q8) - q.zero_point()) as f32;
        assert!(weight.iter().zip(q.data()).all(|(w, &q8)| (w - real(q8)).abs() < 0.51 * q.scale()));
        group.throughput(Throughput::Elements((n * k) as u64));
        group.bench_function(format!("{n}x{k}"), |b| b.iter(|| quantize_weight(black_box(&weight), n, k).unwrap()));
    }
}

fn pack(c: &mut Criterion) {
    let mut group = c.benchmark_group("pack_matrix");
    for (n, k) in SHAPES {
        let q = quantize_weight(&normal(n * k, 1, 0.5), n, k).unwrap();
        assert_eq!(q.pack().unwrap().unpack().unwrap(), q.data());
        group.throughput(Throughput::Bytes((n * k) as u64));
        group
            .bench_function(format!("{n}x{k}"), |b| b.iter(|| fbgemm::pack_matrix(black_box(q.data()), k, n).unwrap()));
    }
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
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
            group.throughput(Throughput::Elements((m * n * k) as u64));
            let id = |form: &str| BenchmarkId::new(form, format!("{m} rows of {n}x{k}"));
            group.bench_function(id("forward_into"), |b| {
                b.iter(|| layer.forward_into(black_box(&input), &mut output).unwrap());
            });
            group.bench_function(id("linear_int8_weight"), |b| {
                b.iter(|| fbgemm::linear_int8_weight(black_box(&input), &q, &packed, Some(&bias)).unwrap());
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
fn load(c: &mut Criterion) {
    let (n, k) = (768, 768);
    let layer = |i| Linear::new(normal(n * k, i, 0.5), Some(normal(n, i, 0.5)), n, k).unwrap();
    let mut model: BTreeMap<String, Linear> = (0..12).map(|i| (format!("layer.{i}"), layer(i))).collect();
    quantize_linear_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench.safetensors");
    fbgemm::save_linear_modules(&model, &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let loaded = ModelFile::parse(&bytes).unwrap().load_quantized(2).unwrap();
    let input = normal(k, 3, 0.5);
    for (name, layer) in &loaded {
        assert_eq!(layer.forward(&input), model[name].forward(&input));
    }
    let mut group = c.benchmark_group("load");
    group.throughput(Throughput::Bytes(bytes.len() as u64)).sample_size(20);
    for threads in [1, 2] {
        group.bench_function(format!("12 layers of {n}x{k}, {threads} threads"), |b| {
            b.iter(|| ModelFile::parse(black_box(&bytes)).unwrap().load_quantized(threads).unwrap());
        });
    }
    group.bench_function("save", |b| b.iter(|| fbgemm::save_linear_modules(&model, &[], &path).unwrap()));
}

criterion_group!(benches, quantize, pack, linear, load);
criterion_main!(benches);
