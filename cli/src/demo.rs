//! `fbgemm demo`: every linear layer of a real model, int8 against fp32, and texts embedded by all of it.

use crate::stdio::{complain, print, say};
use crate::{Exit, fetch, info, table};
use fbgemm::{Int8Scheme, LayerReport, Linear, Modules, QuantizeOptions, quantize_modules};
use fbgemm_encoder::{Encoder, EncoderOptions, Pooling};
use fbgemm_testkit::compare::{cosine, relative_error};
use fbgemm_testkit::minilm::{Files, TEXT};
use fbgemm_testkit::timing::medians;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io;
use std::time::Duration;

const BATCHES: [usize; 3] = [1, 8, 32];

/// Samples of each time.
const REPETITIONS: usize = 15;
/// Of a sample: shorter calls are repeated until the clock can tell them apart.
const SHORTEST: Duration = Duration::from_micros(50);

/// The text about it that the output shows.
const SOURCE: &str = "activations of the model itself, in fp32, on a text of this program";

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
pub fn run(as_json: bool) -> io::Result<Exit> {
    let isa = match fbgemm::cpu_support() {
        Ok(isa) => isa,
        Err(e) => return Ok(Exit::refused(&e)),
    };
    match measure() {
        Ok((rows, tokens, similarity, texts)) => {
            if as_json {
                print_json(&rows, isa, tokens, similarity, &texts)?;
            } else {
                print_table(&rows, isa, tokens, similarity)?;
                print_texts(&texts)?;
            }
            Ok(Exit::Done)
        }
        Err(e) => {
            complain!("error: {e}");
            Ok(Exit::BadInput)
        }
    }
}

fn measure() -> Result<(Vec<Row>, usize, f64, Texts), String> {
    let files = fetch::minilm()?;
    let checkpoint = std::fs::read(&files.checkpoint).map_err(|e| format!("{}: {e}", files.checkpoint.display()))?;
    let mut model = files.load(&checkpoint)?;
    drop(checkpoint);
    let tokens = model.tokens(TEXT);
    let (inputs, exact) = model.activations(&tokens).map_err(said)?;
    // They are about to go from the model.
    let mut floats = Vec::new();
    model.visit_linear("", &mut |_, layer| floats.push(layer.clone()));

    let report = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::accurate())).map_err(said)?;
    let ours = model.embed(&tokens, &mut |_, _| ()).map_err(said)?;
    let similarity = cosine(&exact, &ours);

    let style = ProgressStyle::with_template("{msg:40} {bar:30} {pos}/{len}").expect("a fixed template");
    let bar = ProgressBar::new(floats.len() as u64).with_style(style);
    let mut layers = Vec::new();
    model.visit_linear("", &mut |_, layer| layers.push(layer));
    let mut rows = Vec::new();
    for (((about, layer), float), (_, input)) in report.layers.iter().zip(layers).zip(&floats).zip(&inputs) {
        bar.set_message(about.name.clone());
        rows.push(row(about, float, layer, input).map_err(|e| format!("{}: {}", about.name, e.chain()))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(model);
    Ok((rows, tokens.len(), similarity, embed_texts(&files)?))
}

/// What the end of the demo embeds.
const TEXTS: [&str; 12] = [
    "How do I get from the airport to the city?",
    "The bread needs an hour to rise before you bake it.",
    "My parcel was due on Monday and still has not come.",
    "Bake the loaf until its crust is golden brown.",
    "A train leaves for the centre every ten minutes.",
    "The river rose overnight and flooded the fields.",
    "Where is my delivery? It is three days late.",
    "Our team scored twice in the last five minutes.",
    "Heavy rain is expected in the valley tomorrow.",
    "She has played the violin since she was four.",
    "The match was decided by a late goal.",
    "The invoice is due at the end of the month.",
];

/// The texts by whole encoders, in int8 and in fp32.
struct Texts {
    /// The nearest pairs, with their cosines, nearest first.
    pairs: Vec<(f64, usize, usize)>,
    /// The least cosine of a text in int8 to itself in fp32.
    least: f64,
    timing: Timing,
}

fn embed_texts(files: &Files) -> Result<Texts, String> {
    let folder = files.checkpoint.parent().ok_or("the model lies in no folder")?;
    let options = EncoderOptions::new().pooling(Pooling::Mean).normalize(true).max_tokens(256);
    let open = |options: &EncoderOptions| Encoder::open(folder, options).map_err(|e| e.chain());
    let (int8, fp32) = (open(&options)?, open(&options.as_stored())?);
    // As the layers' times are: one thread.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| e.to_string())?;
    pool.install(|| {
        let vectors = int8.embed(&TEXTS).map_err(|e| e.chain())?;
        let exact = fp32.embed(&TEXTS).map_err(|e| e.chain())?;
        let vectors: Vec<&[f32]> = vectors.chunks_exact(int8.outputs()).collect();
        let exact = exact.chunks_exact(fp32.outputs());
        let least = vectors.iter().zip(exact).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
        let all = (0..TEXTS.len()).flat_map(|a| (0..a).map(move |b| (b, a)));
        let mut pairs: Vec<_> = all.map(|(a, b)| (cosine(vectors[a], vectors[b]), a, b)).collect();
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        pairs.truncate(3);
        let [int8, fp32] =
            medians(REPETITIONS, SHORTEST, [&mut || drop(int8.embed(&TEXTS)), &mut || drop(fp32.embed(&TEXTS))]);
        Ok(Texts { pairs, least, timing: Timing { int8, fp32 } })
    })
}

fn print_texts(texts: &Texts) -> io::Result<()> {
    let Texts { pairs, least, timing } = texts;
    let each = |time: Duration| time.as_secs_f64() * 1e3 / TEXTS.len() as f64;
    say!("\nTexts to vectors, the whole encoder: of {} sentences the three pairs nearest to each other.", TEXTS.len())?;
    for (cosine, a, b) in pairs {
        say!("  {cosine:.2}  {}\n        {}", TEXTS[*a], TEXTS[*b])?;
    }
    say!(
        "A sentence took {:.2} ms in int8 and {:.2} ms in fp32: {:.1} times as fast, on one thread.",
        each(timing.int8),
        each(timing.fp32),
        timing.speed_up()
    )?;
    say!("Each sentence's vector has a cosine of {least:.4} at least to that in fp32.")?;
    say!("Your texts: fbgemm embed MODEL-FOLDER texts.txt > vectors.jsonl")
}

fn said(error: fbgemm::Error) -> String {
    error.chain()
}

fn row(about: &LayerReport, float: &Linear, int8: &Linear, input: &[f32]) -> fbgemm::Result<Row> {
    let (k, n) = (about.in_features, about.out_features);
    let mut error = 0.0;
    let mut timings = Vec::new();
    for batch in BATCHES {
        let x = &input[..batch * k];
        let (mut y, mut y32) = (vec![0.0; batch * n], vec![0.0; batch * n]);
        // What can fail fails here.
        int8.forward_into(x, &mut y)?;
        float.forward_into(x, &mut y32)?;
        let [int8, fp32] = medians(
            REPETITIONS,
            SHORTEST,
            [&mut || drop(int8.forward_into(x, &mut y)), &mut || drop(float.forward_into(x, &mut y32))],
        );
        error = relative_error(&y, &y32);
        timings.push(Timing { int8, fp32 });
    }
    let bytes = [about.bytes_before, about.bytes_after];
    Ok(Row { name: about.name.clone(), shape: format!("{n}x{k}"), bytes, error, timings })
}

fn print_table(rows: &[Row], isa: fbgemm::Isa, tokens: usize, similarity: f64) -> io::Result<()> {
    let mut cells = vec![heading()];
    cells.extend(rows.iter().map(|row| row_cells(row, &row.shape)));
    cells.push(row_cells(&total(rows), ""));
    say!("all-MiniLM-L6-v2, every linear layer: int8 by FBGEMM against fp32 by the gemm crate, one thread.")?;
    say!("CPU: {}; FBGEMM uses {isa}.", info::cpu_name())?;
    say!("Input rows: {SOURCE}, {tokens} tokens (the first 1, 8 and 32).")?;
    say!("Times: medians of {REPETITIONS} after a warm-up, both in turn, weights warm in the caches.\n")?;
    print(format_args!("{}", table::aligned(&cells, true)))?;
    say!("\nError: norm of int8 minus fp32, over the norm of fp32, at batch 32; in the last line, the mean.")?;
    say!("MB: what a layer holds in memory, weight, bias and, in int8, offsets.")?;
    say!("Sentence embedding, all layers in int8 against all in fp32: cosine similarity {similarity:.4}.")
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

fn print_json(rows: &[Row], isa: fbgemm::Isa, tokens: usize, similarity: f64, texts: &Texts) -> io::Result<()> {
    let entry = |row: &Row| {
        let timings = BATCHES.iter().zip(&row.timings).map(|(batch, t)| {
            json!({"batch": batch, "int8_us": t.int8.as_secs_f64() * 1e6, "fp32_us": t.fp32.as_secs_f64() * 1e6,
                "speed_up": t.speed_up()})
        });
        json!({"layer": row.name, "shape": row.shape, "bytes_fp32": row.bytes[0], "bytes_int8": row.bytes[1],
            "relative_error": row.error, "timings": timings.collect::<Vec<_>>()})
    };
    let layers: Vec<_> = rows.iter().map(entry).collect();
    let pair = |(cosine, a, b): &(f64, usize, usize)| json!({"cosine": cosine, "texts": [TEXTS[*a], TEXTS[*b]]});
    let about_texts = json!({"nearest": texts.pairs.iter().map(pair).collect::<Vec<_>>(), "least_cosine": texts.least,
        "int8_ms": texts.timing.int8.as_secs_f64() * 1e3, "fp32_ms": texts.timing.fp32.as_secs_f64() * 1e3,
        "speed_up": texts.timing.speed_up()});
    let result = json!({"model": "all-MiniLM-L6-v2", "cpu": info::cpu_name(), "isa": isa.variable(),
        "inputs": SOURCE, "tokens": tokens, "layers": layers, "total": entry(&total(rows)),
        "embedding_cosine": similarity, "texts": about_texts});
    say!("{result}")
}
