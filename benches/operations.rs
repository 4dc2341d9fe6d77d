//! The three operations, loading a file, and a layer's forms, for developers: each checks its answer first.
//!
//! `cargo bench --bench operations`, with a filter after `--`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fbgemm::{Linear, ModelFile, QuantizeOptions, QuantizedLinear, quantize_linear_modules, quantize_weight};
use std::collections::BTreeMap;
use std::hint::black_box;

const SHAPES: [(usize, usize); 3] = [(64, 64), (384, 1536), (1024, 1024)];

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 2_654_435_761 % 1021) as f32 / 510.0 - 1.0).collect()
}

/// ‖W − scale·(q − zero_point)‖∞ is at most half a step, but for rounding.
fn quantize(c: &mut Criterion) {
    let mut group = c.benchmark_group("quantize_weight");
    for (n, k) in SHAPES {
        let weight = numbers(n * k, 1);
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
        let q = quantize_weight(&numbers(n * k, 1), n, k).unwrap();
        assert_eq!(q.pack().unwrap().unpack().unwrap(), q.data());
        group.throughput(Throughput::Bytes((n * k) as u64));
        group
            .bench_function(format!("{n}x{k}"), |b| b.iter(|| fbgemm::pack_matrix(black_box(q.data()), k, n).unwrap()));
    }
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for (n, k) in SHAPES {
        let (weight, bias) = (numbers(n * k, 1), numbers(n, 2));
        let q = quantize_weight(&weight, n, k).unwrap();
        let packed = q.pack().unwrap();
        let layer = QuantizedLinear::new(&weight, Some(&bias), n, k).unwrap();
        for m in [1, 8, 64] {
            let input = numbers(m * k, 3);
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

/// Against float64: within a few percent of the largest output.
fn check(weight: &[f32], bias: &[f32], input: &[f32], output: &[f32], k: usize) {
    let exact: Vec<f64> = input
        .chunks(k)
        .flat_map(|row| {
            weight.chunks(k).zip(bias).map(move |(w, &b)| {
                w.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() + f64::from(b)
            })
        })
        .collect();
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut exact.iter().zip(output).map(|(e, y)| e - f64::from(*y)));
    let size = norm(&mut exact.iter().copied());
    // On CPUs without VNNI sums of two products are clamped, which is PyTorch's answer there, too.
    let bound = if fbgemm::cpu_support().unwrap().sums_pairs_exactly() { 0.05 } else { 0.6 };
    assert!(error < bound * size, "relative error {}", error / size);
}

/// A model of 12 layers from a file's bytes to packed layers, by one thread and by two.
fn load(c: &mut Criterion) {
    let (n, k) = (768, 768);
    let layer = |i| Linear::new(numbers(n * k, i), Some(numbers(n, i)), n, k).unwrap();
    let mut model: BTreeMap<String, Linear> = (0..12).map(|i| (format!("layer.{i}"), layer(i))).collect();
    quantize_linear_modules(&mut model, &QuantizeOptions::new()).unwrap();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench.safetensors");
    fbgemm::save_linear_modules(&model, &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let loaded = ModelFile::parse(&bytes).unwrap().load_quantized(2).unwrap();
    let input = numbers(k, 3);
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
