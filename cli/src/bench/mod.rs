//! `fbgemm bench`: this crate against fp32 and other int8, case by case, and against the machine's own limits.

mod advice;
mod blas;
mod contender;
mod encoder;
mod fp32;
mod limits;
mod measure;
mod others;
mod ours;
mod output;
mod plot;
mod profile;
mod pytorch;
mod recurrent;
mod result;
mod runner;
mod shapes;
mod tables;
mod threads;

use crate::stdio::{complain, print, say};
use crate::{Exit, info};
use advice::{Advice, LayerTiming};
use indicatif::{ProgressBar, ProgressStyle};
use measure::{Measured, Plan};
use result::{Case, Machine, Run};
use shapes::{Preset, Shape};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

/// This crate's name among the contenders.
const OURS: &str = "fbgemm";

/// What to measure.
#[derive(clap::Args)]
pub struct Bench {
    /// The layers of a well-known model, dlrm's embedding tables, whole LSTMs and GRUs; may be repeated [default: minilm, unless --shape or --model is given]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    preset: Vec<Preset>,
    /// A layer of your own, as 1536x384: outputs x inputs; may be repeated
    #[arg(long, value_name = "OUTxIN", value_delimiter = ',', value_parser = shapes::parse)]
    shape: Vec<(usize, usize)>,
    /// The linear layers of a checkpoint (safetensors), as `fbgemm quantize` chooses them; ends with advice which to
    /// quantize
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// A whole encoder instead of layers: all-MiniLM-L6-v2, texts to vectors
    #[arg(long, conflicts_with_all = ["preset", "shape", "model", "batch", "cold", "csv", "schemes", "contender"])]
    encoder: bool,
    /// With --encoder: what others printed of themselves on the same tokens (encoder/benches/peers.py); may be repeated
    #[arg(long, value_name = "FILE", requires = "encoder")]
    peers: Vec<PathBuf>,
    /// With --encoder: the folder of the ONNX files that peers.py made, for RTen (needs the feature `rten`)
    #[arg(long, value_name = "DIR", requires = "encoder")]
    onnx: Option<PathBuf>,
    /// Batch sizes, that is rows of input
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,32",
        value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: Vec<u32>,
    /// Numbers of threads
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Empty the caches of weights before each call
    ///
    /// Threads are asleep by then, too, so that with several of them waking them counts.
    #[arg(long)]
    cold: bool,
    /// How often each is timed [default: 25; 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
    /// Check all results, and time little: the figures say nothing
    #[arg(long)]
    quick: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print one line for each case and contender, comma-separated
    #[arg(long)]
    csv: bool,
    /// Draw speed-up, time and error into this folder, dlrm's tables, recurrent layers and the encoder, as SVG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// This crate's other ways to quantize, too: in seven bits per channel and row, and in fp16
    #[arg(long)]
    schemes: bool,
    /// Only contenders with this in their name, and this crate; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contender: Vec<String>,
}

/// Measures, and prints what was found.
pub fn run(arguments: &Bench) -> io::Result<Exit> {
    let isa = match fbgemm::cpu_support() {
        Ok(isa) => isa,
        Err(e) => return Ok(Exit::refused(&e)),
    };
    let said = |exit: Exit| {
        move |e: String| {
            complain!("error: {e}");
            exit
        }
    };
    if arguments.encoder {
        return of_encoder(arguments, isa).unwrap_or_else(|e| Ok(said(Exit::BadInput)(e)));
    }
    let result = plan(arguments, isa).map_err(said(Exit::BadInput)).and_then(|plan| {
        let cases = plan.shapes.len() * plan.batches.len() * plan.threads.len();
        let bar = progress(cases);
        let measured = measure::run(&plan, &bar);
        bar.finish_and_clear();
        let Measured { cases, limits, interrupted } = measured.map_err(said(Exit::CheckFailed))?;
        if interrupted > 0.1 && !plan.quick {
            let share = 100.0 * interrupted;
            complain!("warning: other programs interrupted {share:.0}% of the samples; this machine is not at rest");
        }
        let tables = match arguments.preset.contains(&Preset::Dlrm) {
            true => Some(tables::run(plan.repetitions, plan.quick).map_err(said(Exit::CheckFailed))?),
            false => None,
        };
        let of_tables = tables.as_ref().map(tables::text).unwrap_or_default();
        let tables = tables.map(|tables| tables.cases).unwrap_or_default();
        let (mut of_recurrent, mut recurrent) = (String::new(), Vec::new());
        for (preset, kind) in [(Preset::Lstm, recurrent::Kind::Lstm), (Preset::Gru, recurrent::Kind::Gru)] {
            if arguments.preset.contains(&preset) {
                let measured = recurrent::run(kind, &plan.libraries, plan.repetitions, plan.quick);
                let measured = measured.map_err(said(Exit::CheckFailed))?;
                of_recurrent += &recurrent::text(&measured);
                recurrent.extend(measured.cases);
            }
        }
        let run = Run { machine: machine(plan.isa, plan.cold), limits, cases, tables, recurrent };
        let advice = arguments.model.is_some().then(|| advice(&plan, &run.cases)).flatten();
        let printed = if arguments.json {
            say!("{}", output::json(&run, advice.as_ref()))
        } else if arguments.csv {
            print(format_args!("{}", output::csv(&run)))
        } else {
            print(format_args!("{}{of_tables}{of_recurrent}", output::text(&run, advice.as_ref(), plan.quick)))
        };
        if let Some(folder) = &arguments.plot {
            for file in plot::draw(&run, folder).map_err(said(Exit::BadInput))? {
                complain!("drawn: {}", file.display());
            }
        }
        Ok(printed.map(|()| Exit::Done))
    });
    result.unwrap_or_else(Ok)
}

/// Measures the encoder, and prints what was found.
fn of_encoder(arguments: &Bench, isa: fbgemm::Isa) -> Result<io::Result<Exit>, String> {
    let threads: Vec<usize> = once_each(&arguments.threads).into_iter().map(|threads| threads as usize).collect();
    make_folder(arguments)?;
    let samples = arguments.repetitions.unwrap_or(if arguments.quick { 1 } else { 15 }) as usize;
    let bar = progress(threads.len() * encoder::CASES);
    let (peers, onnx) = (&arguments.peers, arguments.onnx.as_deref());
    let run = encoder::run(machine(isa, false), &threads, peers, onnx, samples, arguments.quick, &bar);
    bar.finish_and_clear();
    let run = run?;
    let printed = match arguments.json {
        true => say!("{}", serde_json::to_value(&run).expect("numbers and texts")),
        false => print(format_args!("{}", encoder::text(&run, arguments.quick))),
    };
    if let Some(folder) = &arguments.plot {
        complain!("drawn: {}", plot::draw_encoder(&run, folder)?.display());
    }
    Ok(printed.map(|()| Exit::Done))
}

fn progress(cases: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:50} {bar:30} {pos}/{len}").expect("a fixed template");
    ProgressBar::new(cases as u64).with_style(style)
}

/// Of the plots, at the start, so that nothing is measured in vain.
fn make_folder(arguments: &Bench) -> Result<(), String> {
    let Some(folder) = &arguments.plot else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))
}

fn plan(arguments: &Bench, isa: fbgemm::Isa) -> Result<Plan, String> {
    let mut shapes: Vec<Shape> = arguments.shape.iter().copied().map(shapes::own).collect();
    if let Some(path) = &arguments.model {
        shapes.extend(shapes::model(path)?);
    }
    let default = if shapes.is_empty() { &[Preset::Minilm][..] } else { &[] };
    let presets = if arguments.preset.is_empty() { default } else { &arguments.preset[..] };
    shapes.extend(once_each(presets).into_iter().flat_map(Preset::shapes));

    let numbers = |list: &[u32]| once_each(list).into_iter().map(|number| number as usize).collect::<Vec<_>>();
    let (batches, threads) = (numbers(&arguments.batch), numbers(&arguments.threads));
    let cpus = threads::cpus().len();
    if let Some(many) = threads.iter().find(|threads| **threads > cpus) {
        return Err(format!("{many} threads can't be pinned: this process may use {cpus} CPUs"));
    }
    for shape in &shapes {
        let largest = shape.out_features.max(shape.in_features);
        if let Some(batch) = batches.iter().find(|batch| *batch * largest > i32::MAX as usize) {
            return Err(format!("batch {batch} of {}x{} is too large", shape.out_features, shape.in_features));
        }
    }
    make_folder(arguments)?;
    let libraries = blas::find()?;
    let all: Vec<String> =
        threads::with_crew(1, |crew| measure::entries(crew, &libraries).into_iter().map(|e| e.name).collect())?;
    // Left out unless asked for: the tables are wide enough.
    let of_schemes = |name: &String| arguments.schemes || !name.starts_with(&format!("{OURS} "));
    let contenders = chosen(all.into_iter().filter(of_schemes).collect(), &arguments.contender)?;
    let repetitions = arguments.repetitions.unwrap_or(if arguments.quick { 3 } else { 25 }) as usize;
    let (cold, quick) = (arguments.cold, arguments.quick);
    Ok(Plan { shapes, batches, threads, repetitions, cold, quick, isa, libraries, contenders })
}

fn once_each<T: Copy + PartialEq>(list: &[T]) -> Vec<T> {
    let first = |(i, item): (usize, &T)| (!list[..i].contains(item)).then_some(*item);
    list.iter().enumerate().filter_map(first).collect()
}

/// The contenders that compete.
fn chosen(all: Vec<String>, wanted: &[String]) -> Result<Vec<String>, String> {
    let fits = |name: &str, part: &str| name.to_lowercase().contains(&part.to_lowercase());
    if let Some(unknown) = wanted.iter().find(|part| !all.iter().any(|name| fits(name, part))) {
        return Err(format!("no contender is named {unknown:?}: there are {}", all.join(", ")));
    }
    let all = all.into_iter();
    Ok(all.filter(|name| wanted.is_empty() || name == OURS || wanted.iter().any(|part| fits(name, part))).collect())
}

fn machine(isa: fbgemm::Isa, cold: bool) -> Machine {
    let provider = fbgemm::provider();
    Machine {
        cpu: info::cpu_name(),
        isa: isa.to_string(),
        fbgemm: provider.map_or_else(|| "none".to_string(), |p| format!("{} ({})", p.version, p.name)),
        version: env!("CARGO_PKG_VERSION").to_string(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        date: date(SystemTime::now()),
        cold,
    }
}

/// The day, UTC, as 2026-11-24.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    // Howard Hinnant's civil_from_days: years begin in March, so that leap days come last, and eras have 400 years.
    let days = seconds / 86400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + next)
}

/// What the cases of the checkpoint say about its layers, at the first number of threads.
fn advice(plan: &Plan, cases: &[Case]) -> Option<Advice> {
    let mut timings = Vec::new();
    for shape in plan.shapes.iter().filter(|shape| shape.real.is_some()) {
        let of_shape = |case: &&Case| {
            (&case.source, &case.layer, case.threads) == (&shape.source, &shape.names[0], plan.threads[0])
        };
        for case in cases.iter().filter(of_shape) {
            let speed_up = case.speed_up()?;
            let (out_features, in_features, batch) = (case.out_features, case.in_features, case.batch);
            let timing = |name: &String| LayerTiming { name: name.clone(), out_features, in_features, batch, speed_up };
            timings.extend(shape.names.iter().map(timing));
        }
    }
    timings.sort_by(|a, b| a.name.cmp(&b.name)); // as `fbgemm quantize` lists them
    Some(Advice::of(&timings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86400 + 86399)), expected);
        }
    }

    #[test]
    fn contenders_are_chosen_by_parts_of_their_names_and_this_crate_always() {
        let all = || ["fbgemm", "gemm", "MKL 2024.2", "MKL 2024.2 packed"].map(String::from).to_vec();
        let chosen = |wanted: &[&str]| chosen(all(), &wanted.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(chosen(&[]), Ok(all()));
        assert_eq!(chosen(&["mkl"]).unwrap(), ["fbgemm", "MKL 2024.2", "MKL 2024.2 packed"]);
        assert_eq!(chosen(&["packed", "fbgemm"]).unwrap(), ["fbgemm", "MKL 2024.2 packed"]);
        assert!(chosen(&["mlk"]).unwrap_err().contains("there are fbgemm, gemm, MKL"));
    }
}
