//! What the pictures hold, and that their texts stay apart.

use super::axes::{log_ticks, power, ratio, seconds};
use super::labels::{apart, on_threads, width};
use super::marks::{Anchor, COLORS, Drawing, Mark, WIDTH};
use super::pictures::spread;
use super::*;
use crate::bench::result::{Limits, Machine, RecurrentCase, RecurrentTiming, TableCase, TableTiming, Timing};

const CONTENDERS: [&str; 4] = ["fbgemm", "gemm", "matrixmultiply", "OpenBLAS 0.3"];
const SHAPES: [(&str, usize, usize); 3] = [("query", 384, 384), ("up", 1536, 384), ("down", 384, 1536)];

/// Times and errors as they may be; shapes are (name, outputs, inputs).
fn run(
    sources: &[&str],
    shapes: &[(&str, usize, usize)],
    batches: &[usize],
    threads: &[usize],
    contenders: &[&str],
) -> Run {
    let mut cases = Vec::new();
    for source in sources {
        for &threads in threads {
            for &(layer, out_features, in_features) in shapes {
                for &batch in batches {
                    let timing = |(i, name): (usize, &&str)| {
                        let work = (out_features * in_features * (8 + batch)) as f64 / threads as f64;
                        let median = 2e-6 + work * 1e-11 * (i + 1) as f64 + batch as f64 * 1e-6 / (i + 1) as f64;
                        let error = if i == 0 { 8e-3 } else { 2e-7 * i as f64 } * (1. + 1. / batch as f64);
                        Timing {
                            contender: name.to_string(),
                            int8: i == 0,
                            median,
                            low: median * 0.95,
                            high: median * 1.1,
                            error,
                            pack: None,
                        }
                    };
                    cases.push(Case {
                        source: source.to_string(),
                        layer: layer.to_string(),
                        count: 1,
                        out_features,
                        in_features,
                        batch,
                        threads,
                        timings: contenders.iter().enumerate().map(timing).collect(),
                        split: None,
                        limit_share: 0.5,
                        limit: "read",
                    });
                }
            }
        }
    }
    let machine = Machine {
        cpu: "A CPU of 64 Cores @ 2.70GHz".to_string(),
        isa: "avx2".to_string(),
        fbgemm: "1.3.0 (system)".to_string(),
        version: "0.1.0".to_string(),
        threads: 2,
        date: "2026-11-24".to_string(),
        cold: true,
    };
    let limits = Limits { read: Vec::new(), int8_per_second: 1e11, fp32_per_second: 5e10 };
    Run { machine, limits, cases, tables: Vec::new(), recurrent: Vec::new() }
}

/// All drawings of a run.
fn drawings(run: &Run) -> Vec<Drawing> {
    let cases: Vec<&Case> = run.cases.iter().collect();
    let all = [speed_up(run, &cases), Some(time(run, &cases)), Some(error(run, &cases)), tables(run), recurrent(run)];
    all.into_iter().flatten().collect()
}

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("fbgemm-plot-{}-{test}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn writes_all_drawings() {
    let folder = Folder::new("all");
    let run = run(&["minilm"], &SHAPES, &[1, 8, 32, 128], &[1], &CONTENDERS);
    let nested = folder.0.join("made");
    let files = draw(&run, &nested).unwrap();
    let names: Vec<&str> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["speed-up.svg", "time.svg", "error.svg"], "drawn in this order");
    assert_eq!(fs::read_dir(&nested).unwrap().count(), files.len(), "nothing else is left behind");
    let [red, green, blue] = COLORS[0];
    for file in &files {
        let svg = fs::read_to_string(file).unwrap();
        assert!(svg.contains(&format!("#{red:02x}{green:02x}{blue:02x}")), "a line or dot of this crate's");
        for text in ["query 384→384", "up 384→1536", "down 1536→384", "CPU of 64 Cores", "avx2", "1.3.0", "cold"]
        {
            assert!(svg.contains(text), "{text} is missing in {}", file.display());
        }
        for text in ["crate fbgemm 0.1.0", "1 thread of 2", "2026-11-24", "</svg>"] {
            assert!(svg.contains(text), "{text} is missing in {}", file.display());
        }
    }
    // Again, over the first ones.
    assert_eq!(draw(&run, &nested).unwrap(), files);
}

/// With the tables of a preset, and PyTorch's.
fn with_tables() -> Run {
    let names = ["fp32, plain loops", "fp32", "int8", "int2", "PyTorch 2.14.1 fp32", "PyTorch 2.14.1 int8"];
    let mut run = run(&["dlrm"], &SHAPES[..1], &[1, 8], &[1], &CONTENDERS);
    for (rows, dimension) in [(10_000, 64), (10_000, 128), (10_000_000, 64)] {
        for bag in [1, 20, 100] {
            let timing = |(i, name): (usize, &&str)| {
                let median = 1e-9 * (dimension * (i + 2)) as f64 / (bag as f64).powf(0.2);
                let (low, high) = (median * 0.9, median * 1.2);
                TableTiming { contender: name.to_string(), row_bytes: dimension, median, low, high, limit_share: None }
            };
            let timings = names.iter().enumerate().map(timing).collect();
            run.tables.push(TableCase { rows, dimension, bag, timings });
        }
    }
    run
}

#[test]
fn draws_tables_where_there_are_any() {
    let folder = Folder::new("tables");
    let files = draw(&with_tables(), &folder.0).unwrap();
    assert_eq!(files.last().unwrap().file_name().unwrap(), "tables.svg");
    let svg = fs::read_to_string(files.last().unwrap()).unwrap();
    for text in ["10 k x 64", "10 M x 64", "PyTorch 2.14.1 int8", "rows of a bag", "1 thread of 2"] {
        assert!(svg.contains(text), "{text} is missing");
    }
    let mut none = with_tables();
    none.tables.iter_mut().for_each(|case| case.timings.clear());
    assert_eq!(draw(&none, &folder.0).unwrap().len(), 3);
}

/// With the layers of two presets.
fn with_recurrent() -> Run {
    let names = ["fbgemm", "fbgemm as PyTorch", "gemm", "MKL 2024.2 packed", "PyTorch 2.14.1 int8", "PyTorch 2.14.1"];
    let mut run = run(&["lstm"], &SHAPES[..1], &[1, 8], &[1], &CONTENDERS);
    for (layer, batch) in [("LSTM", 1), ("LSTM", 8), ("GRU", 1)] {
        for (hidden, steps) in [(128, 1), (512, 1), (1024, 1), (128, 50), (1024, 50)] {
            let timing = |(i, name): (usize, &&str)| {
                let median = 1e-9 * (hidden * batch * steps * (i + 2)) as f64;
                let quantized = !["gemm", "MKL 2024.2 packed", "PyTorch 2.14.1"].contains(name);
                let (low, high) = (median * 0.9, median * 1.2);
                RecurrentTiming { contender: name.to_string(), quantized, median, low, high }
            };
            let timings = names.iter().enumerate().map(timing).collect();
            run.recurrent.push(RecurrentCase { layer: layer.to_string(), hidden, batch, steps, timings });
        }
    }
    run
}

#[test]
fn draws_recurrent_layers_where_there_are_any_with_the_best_of_fp32() {
    let folder = Folder::new("recurrent");
    let files = draw(&with_recurrent(), &folder.0).unwrap();
    assert_eq!(files.last().unwrap().file_name().unwrap(), "recurrent.svg");
    let svg = fs::read_to_string(files.last().unwrap()).unwrap();
    for text in ["LSTM, 8 rows, 50 steps", "GRU, 1 row, 1 step", "PyTorch 2.14.1 int8", "best fp32", "hidden state"] {
        assert!(svg.contains(text), "{text} is missing");
    }
    assert!(!svg.contains("packed"));
}

#[test]
fn needs_fp32_for_the_speed_up_only() {
    let folder = Folder::new("alone");
    let files = draw(&run(&["minilm"], &SHAPES, &[1, 8], &[1], &CONTENDERS[..1]), &folder.0).unwrap();
    assert_eq!(files.len(), 2);
    assert!(!folder.0.join("speed-up.svg").exists());
}

#[test]
fn tells_what_it_cannot_draw() {
    let folder = Folder::new("none");
    let empty = run(&[], &SHAPES, &[1], &[1], &CONTENDERS);
    assert!(draw(&empty, &folder.0).unwrap_err().contains("nothing to draw"));
    let untimed = run(&["minilm"], &SHAPES, &[1], &[1], &[]);
    assert!(draw(&untimed, &folder.0).unwrap_err().contains("nothing to draw"));
    assert!(!folder.0.exists());

    fs::write(&folder.0, "a file").unwrap();
    let error = draw(&run(&["minilm"], &SHAPES, &[1], &[1], &CONTENDERS), &folder.0).unwrap_err();
    assert!(error.contains(folder.0.to_str().unwrap()), "{error}");
    fs::remove_file(&folder.0).unwrap();
}

#[test]
fn keeps_texts_apart() {
    let long = "bert.encoder.layer.11.a_name_that_goes_on_and_on_and_on_and_on_and_never_seems_to_end.dense";
    let many: Vec<(String, usize)> = (1..=40).map(|i| (format!("layer {i}"), 64 * i)).collect();
    let many: Vec<(&str, usize, usize)> = many.iter().map(|(name, i)| (name.as_str(), *i, 512)).collect();
    let nine = ["fbgemm", "a", "b", "c", "d", "e", "f", "ONNX Runtime 1.23.2 with a long name", "h"];
    let all_batches = [1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 96, 100, 128, 256, 1000];
    for (what, run) in [
        ("plain", run(&["minilm"], &SHAPES, &[1, 8, 32, 128], &[1], &CONTENDERS)),
        ("presets", run(&["minilm", "bert", "lstm", "dlrm"], &SHAPES, &all_batches, &[1, 2], &nine)),
        ("one point", run(&["minilm"], &SHAPES[..1], &[1], &[1], &CONTENDERS)),
        ("twelve", run(&["shapes"], &many[..12], &[1, 8, 32, 128], &[1], &CONTENDERS)),
        ("forty", run(&["shapes", "again"], &many, &[1, 128], &[1, 2, 4], &CONTENDERS)),
        ("tables", with_tables()),
        ("recurrent", with_recurrent()),
        ("long", run(&[long, &long[1..]], &[(long, 384, 384), (long, 384, 1536)], &[1, 8], &[1, 2], &nine)),
    ] {
        for page in drawings(&run) {
            let boxes = page.marks.iter().filter_map(|mark| match mark {
                Mark::Text { at: (x, y), text, size, bold, anchor, .. } => {
                    let width = width(text, *size, *bold);
                    let left = match anchor {
                        Anchor::Start => *x,
                        Anchor::Middle => x - width / 2.,
                        Anchor::End => x - width,
                    };
                    Some((text, left, y - 0.76 * size, left + width, y + 0.24 * size))
                }
                _ => None,
            });
            let boxes: Vec<_> = boxes.collect();
            for (i, (text, left, top, right, bottom)) in boxes.iter().enumerate() {
                let inside = *left >= 0. && *top >= 0. && *right <= WIDTH && *bottom <= page.height;
                assert!(inside, "{what}: {text:?} leaves {:?}", page.title);
                for (other, l, t, r, b) in &boxes[..i] {
                    let apart = right <= l || r <= left || bottom <= t || b <= top;
                    assert!(apart, "{what}: {text:?} lies on {other:?} in {:?}", page.title);
                }
            }
        }
    }
}

#[test]
fn draws_what_has_no_place() {
    let mut run = run(&["minilm"], &SHAPES, &[1, 8], &[1], &CONTENDERS);
    for (i, timing) in run.cases.iter_mut().flat_map(|case| &mut case.timings).enumerate() {
        let value = [0., f64::NAN, f64::INFINITY, -1.][i % 4];
        (timing.median, timing.low, timing.high, timing.error) = (value, value, value, value);
    }
    for drawing in drawings(&run) {
        assert!(!drawing.svg().contains("NaN") && !drawing.svg().contains("inf"));
    }
}

#[test]
fn names_a_shape_once() {
    let run = run(&["yours"], &[("1536x384", 1536, 384), ("x", 64, 64)], &[1], &[1], &CONTENDERS);
    for drawing in drawings(&run) {
        let svg = drawing.svg();
        assert!(svg.contains(">384→1536<") && svg.contains(">x 64→64<") && !svg.contains("1536x384"));
    }
}

#[test]
fn escapes_names() {
    let run = run(&["minilm"], &[("a<b>&\u{7}\"c\"", 64, 64)], &[1, 8], &[1], &CONTENDERS);
    for drawing in drawings(&run) {
        assert!(drawing.svg().contains("a&lt;b&gt;&amp; \"c\" 64→64"));
    }
}

#[test]
fn places_labels_apart_and_near() {
    assert_eq!(apart(&[10., 50., 30.], 15., 0., 100.), [10., 50., 30.], "free ones stay");
    assert_eq!(apart(&[50., 50.], 10., 0., 100.), [45., 55.], "a pair shares the way");
    assert_eq!(apart(&[99., 98., 97.], 10., 0., 100.), [100., 90., 80.], "within the end, in order");
    assert_eq!(apart(&[1., 2.], 10., 0., 100.), [0., 10.], "within the start");
    assert_eq!(apart(&[], 10., 0., 100.), [0f32; 0]);
}

#[test]
fn chooses_ticks() {
    assert_eq!(log_ticks(0.6, 3.9, 2., &[1., 1.5]), [0.75, 1., 1.5, 2., 3.]);
    assert_eq!(log_ticks(0.4, 9., 2., &[1., 1.5]), [0.5, 1., 2., 4., 8.]);
    assert!(log_ticks(1e-12, 1e12, 10., &[1.]).len() < 10);
    let texts = [ratio(0.75), ratio(1.), ratio(20.), ratio(128.), seconds(2e-5), seconds(0.001), power(1e-7)];
    assert_eq!(texts, ["0.75×", "1×", "20×", "128×", "20 µs", "1 ms", "10⁻⁷"]);
}

#[test]
fn chooses_evenly() {
    let all: Vec<usize> = (0..10).collect();
    assert_eq!(spread(&all, 4), [&0, &3, &6, &9]);
    assert_eq!(spread(&all[..2], 4), [&0, &1]);
    assert!(spread(&all[..0], 4).is_empty());
    let texts = [on_threads(&[1]), on_threads(&[2]), on_threads(&[1, 2]), on_threads(&[1, 2, 4])];
    assert_eq!(texts, ["1 thread", "2 threads", "1 and 2 threads", "1, 2 and 4 threads"]);
}
