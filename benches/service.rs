//! What a service sees: one call on two threads, requests on two threads, inputs per row and in other number types, one
//! input for several layers, the first call with and without `warm_up`.
//!
//! `cargo bench --bench service`; `quick` after `--` for few repetitions, which checks results alone.

use fbgemm::{Element, InputScheme, Int8Scheme, QuantizedInput, QuantizedLinear};
use fbgemm_testkit::random::normal;
use fbgemm_testkit::timing::{median, medians, time};
use half::{bf16, f16};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Shorter calls are repeated until they take about this long.
const SAMPLE: Duration = Duration::from_micros(50);

fn layer(n: usize, k: usize) -> QuantizedLinear {
    QuantizedLinear::new(&normal(n * k, 1, 0.5), Some(normal(n, 2, 0.5)), n, k, Int8Scheme::pytorch()).unwrap()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// One call, split over a pool of two, against the same call on one thread, in turn.
fn split(repetitions: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    println!("One call on a rayon pool of 2 threads against 1 thread (medians of {repetitions}, in turn)");
    println!("{:>5} {:>11} {:>6} {:>12} {:>12} {:>8}", "rows", "out x in", "parts", "1 thread us", "pool us", "faster");
    for (n, k) in [(64, 64), (384, 384), (1536, 384), (1024, 1024), (4096, 1024), (4096, 4096)] {
        let layer = layer(n, k);
        for m in [1, 8, 64, 128] {
            let input = normal(m * k, 3, 0.5);
            let (mut alone, mut together) = (vec![0f32; m * n], vec![0f32; m * n]);
            let [a, b] = pool.install(|| {
                medians(
                    repetitions,
                    Duration::ZERO, // one call at a time, as requests come
                    [&mut || layer.forward_into(&input, &mut alone).unwrap(), &mut || {
                        layer.forward_rayon(&input, &mut together).unwrap()
                    }],
                )
            });
            assert!(alone.iter().zip(&together).all(|(x, y)| x.to_bits() == y.to_bits()), "{m} rows of {n}x{k}");
            let parts = layer.suggested_tasks(m, 2);
            let shape = format!("{n}x{k}");
            let faster = a.as_secs_f64() / b.as_secs_f64();
            println!("{m:>5} {shape:>11} {parts:>6} {:>12.1} {:>12.1} {faster:>7.2}x", micros(a), micros(b));
        }
    }
}

/// Inputs quantized per row, and per tensor as PyTorch does, in turn.
fn per_row(repetitions: usize) {
    println!("\nInput per row against per tensor (medians of {repetitions}, in turn)");
    println!("{:>5} {:>11} {:>14} {:>12} {:>8}", "rows", "out x in", "per tensor us", "per row us", "takes");
    for (n, k) in [(64, 64), (384, 384), (384, 1536), (768, 768), (768, 3072), (3072, 768)] {
        let tensor = layer(n, k);
        let row = tensor.clone().with_input(InputScheme::new().per_row());
        for m in [1, 8, 32, 128] {
            let input = normal(m * k, 3, 0.5);
            let mut output = vec![0f32; m * n];
            let mut of_row = output.clone();
            let [a, b] = medians(
                repetitions,
                SAMPLE,
                [&mut || tensor.forward_into(&input, &mut output).unwrap(), &mut || {
                    row.forward_into(&input, &mut of_row).unwrap()
                }],
            );
            let alone: Vec<f32> = row.forward(&input[..k]).unwrap();
            assert!(alone.iter().zip(&of_row).all(|(x, y)| x.to_bits() == y.to_bits()), "{m} rows of {n}x{k}");
            let takes = b.as_secs_f64() / a.as_secs_f64();
            println!("{m:>5} {:>11} {:>14.1} {:>12.1} {takes:>7.2}x", format!("{n}x{k}"), micros(a), micros(b));
        }
    }
}

/// Query, key and value of an attention, which read one input: each layer by itself, one quantized input for all three, and
/// one layer of them all, in turn.
fn one_input(repetitions: usize) {
    println!("\nThree layers that read one input, per channel and row (medians of {repetitions}, in turn)");
    println!(
        "{:>5} {:>11} {:>12} {:>20} {:>8} {:>16} {:>8}",
        "rows", "out x in", "apart us", "quantized once us", "takes", "concatenated us", "takes"
    );
    for k in [384, 768, 1024] {
        let of = |seed| QuantizedLinear::new(&normal(k * k, seed, 0.5), None, k, k, Int8Scheme::accurate()).unwrap();
        let layers = [1, 2, 3].map(of);
        let all = QuantizedLinear::concat(&layers.each_ref()).unwrap();
        for m in [1, 8, 32, 128] {
            let input = normal(m * k, 3, 0.5);
            let mut outputs = vec![vec![0f32; m * k]; 6];
            let (apart, shared) = outputs.split_at_mut(3);
            let mut together = vec![0f32; 3 * m * k];
            let [mut one, mut other] = [QuantizedInput::new(k), QuantizedInput::new(k)];
            let quantize = |quantized: &mut QuantizedInput| {
                quantized.clear(k);
                quantized.extend(&input, Int8Scheme::accurate().inputs).unwrap();
            };
            let times = medians(
                repetitions,
                SAMPLE,
                [
                    &mut || {
                        for (layer, output) in layers.iter().zip(&mut *apart) {
                            layer.forward_into(&input, output).unwrap();
                        }
                    },
                    &mut || {
                        quantize(&mut one);
                        for (layer, output) in layers.iter().zip(&mut *shared) {
                            layer.forward_quantized(&one, output).unwrap();
                        }
                    },
                    &mut || {
                        quantize(&mut other);
                        all.forward_quantized(&other, &mut together).unwrap();
                    },
                ],
            );
            assert_eq!(apart, shared);
            assert!(together.chunks(k).enumerate().all(|(i, part)| *part == apart[i % 3][i / 3 * k..][..k]));
            let [apart, shared, together] = times.map(micros);
            println!(
                "{m:>5} {:>11} {apart:>12.1} {shared:>20.1} {:>7.2}x {together:>16.1} {:>7.2}x",
                format!("{k}x{k}"),
                shared / apart,
                together / apart
            );
        }
    }
}

/// Inputs and outputs in the other number types against f32, in turn.
fn types(repetitions: usize) {
    const ROWS: usize = 128;
    let (n, k) = (1536, 384);
    let layer = layer(n, k);
    let input = normal(ROWS * k, 3, 0.5);
    fn call<T: Element + Clone>(layer: &QuantizedLinear, input: Vec<T>, zero: T, outputs: usize) -> impl FnMut() {
        let (layer, mut output) = (layer.clone(), vec![zero; outputs]);
        move || layer.forward_into(&input, &mut output).unwrap()
    }
    let outputs = ROWS * n;
    let mut floats = call(&layer, input.clone(), 0f32, outputs);
    let mut doubles = call(&layer, input.iter().map(|&x| f64::from(x)).collect(), 0f64, outputs);
    let mut halves = call(&layer, input.iter().map(|&x| f16::from_f32(x)).collect(), f16::ZERO, outputs);
    let mut brains = call(&layer, input.iter().map(|&x| bf16::from_f32(x)).collect(), bf16::ZERO, outputs);
    let times = medians(repetitions, SAMPLE, [&mut floats, &mut doubles, &mut halves, &mut brains]);
    println!("\nOther number types against f32, {ROWS} rows of {n}x{k} (medians of {repetitions}, in turn)");
    for (name, time) in ["f32", "f64", "f16", "bf16"].into_iter().zip(times) {
        let takes = time.as_secs_f64() / times[0].as_secs_f64();
        println!("{name:>5} {:>12.1} us {takes:>7.2}x", micros(time));
    }
}

/// Requests a second on one shared layer, by one thread and by two.
fn throughput(period: Duration) {
    println!("\nRequests on one shared layer, each thread its own requests ({period:?} each)");
    println!("{:>5} {:>11} {:>14} {:>14} {:>8}", "rows", "out x in", "1 thread/s", "2 threads/s", "more");
    for (m, n, k) in [(1, 64, 64), (1, 384, 1536), (8, 1024, 1024), (32, 768, 3072)] {
        let layer = layer(n, k);
        let input = normal(m * k, 3, 0.5);
        let expected: Vec<f32> = layer.forward(&input).unwrap();
        let run = |threads: usize| {
            let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let mut output = vec![0f32; m * n];
                        let mut done = 0;
                        while !stop.load(Ordering::Relaxed) {
                            layer.forward_into(&input, &mut output).unwrap();
                            done += 1;
                        }
                        assert!(output == expected);
                        count.fetch_add(done, Ordering::Relaxed);
                    });
                }
                std::thread::sleep(period);
                stop.store(true, Ordering::Relaxed);
            });
            count.into_inner() as f64 / period.as_secs_f64()
        };
        let (one, two) = (run(1), run(2));
        let shape = format!("{n}x{k}");
        println!("{m:>5} {shape:>11} {one:>14.0} {two:>14.0} {:>7.2}x", two / one);
    }
}

/// The first call with so many rows in a thread and process where that number was not seen yet, as FBGEMM generates a
/// kernel for each; with and without a warm-up, and a call later on.
fn first_calls() {
    println!("\nThe first call with a number of rows, 384x1536");
    let layer = layer(384, 1536);
    let timed = |m: usize| {
        let input = normal(m * 1536, 3, 0.5);
        let mut output = vec![0f32; m * 384];
        time(1, || layer.forward_into(&input, &mut output).unwrap())
    };
    // Each of these is the only one to use its kernel before.
    let (cold, warmed) = ([3, 5, 9, 11, 13, 15, 17], [4, 6, 10, 12, 14, 16, 18]);
    // A thread of its own: it has no buffer yet.
    let one = |rows: &[usize], warm: bool| {
        let times = rows.iter().map(|&m| {
            std::thread::scope(|scope| {
                let run = || {
                    if warm {
                        layer.warm_up([m]).unwrap();
                    }
                    (timed(m), median((0..9).map(|_| timed(m)).collect()))
                };
                scope.spawn(run).join().unwrap()
            })
        });
        let (first, later): (Vec<_>, Vec<_>) = times.unzip();
        (micros(median(first)), micros(median(later)))
    };
    let first = time(1, || layer.warm_up([1]).unwrap());
    println!("{:>24} {:>12.1} us", "very first, one row", micros(first));
    for (name, (first, later)) in [("cold", one(&cold, false)), ("after warm_up", one(&warmed, true))] {
        println!("{name:>24} {first:>12.1} us, later calls {later:.1} us");
    }
}

fn main() {
    // `cargo test` runs it without `--bench`.
    let quick = std::env::args().any(|a| a == "quick") || !std::env::args().any(|a| a == "--bench");
    println!("FBGEMM uses {}.", fbgemm::cpu_support().expect("a CPU that FBGEMM supports"));
    first_calls();
    split(if quick { 3 } else { 101 });
    per_row(if quick { 3 } else { 101 });
    one_input(if quick { 3 } else { 101 });
    types(if quick { 3 } else { 101 });
    throughput(Duration::from_millis(if quick { 20 } else { 500 }));
}
