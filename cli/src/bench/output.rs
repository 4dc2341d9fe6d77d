//! What was measured, as tables, JSON and CSV.

use super::OURS;
use super::advice::Advice;
use super::result::{Case, Run, Timing};
use crate::table;
use serde_json::Value;

/// All of it, for people.
pub fn text(run: &Run, advice: Option<&Advice>, quick: bool) -> String {
    let mut text = heading(run);
    if quick {
        text += "A quick run: results are checked, times say nothing.\n";
    }
    let names = contenders(run);
    text += &format!("\n{}", times(run, &names));
    text += "
Microseconds for a call, medians, and half the distance of the quartiles. Error: norm of the result minus float64's,
over the norm of float64's; of those in fp32 the largest. Faster: fbgemm than the best fp32. Of limit: the least time
that reading the weight (read) or multiplying (int8) takes on this machine, as a share of fbgemm's time.
";
    text += &format!("\n{}", parts(run, &names));
    text += "
Parts: fbgemm's on one thread, in microseconds; quantize: the input's range, and quantizing it; multiply: with the
output's conversion. Pack: milliseconds from the fp32 weight to the one that is used.
";
    if let Some(advice) = advice {
        let threads = threads(run.cases[0].threads);
        text += &format!("\nfbgemm against the best fp32 of each case, {threads}:\n{}", advice.text());
    }
    text
}

fn heading(run: &Run) -> String {
    let (machine, limits) = (&run.machine, &run.limits);
    let mut text = format!(
        "fbgemm {}, FBGEMM {}, {}. CPU: {}, {}; FBGEMM uses {}. Caches {}.\n",
        machine.version,
        machine.fbgemm,
        machine.date,
        machine.cpu,
        threads(machine.threads),
        machine.isa,
        if machine.cold { "emptied of weights before each call" } else { "warm" },
    );
    text += &format!(
        "Limits of a thread, in billions a second: {:.0} multiply-adds in int8, {:.0} in fp32.\n",
        limits.int8_per_second / 1e9,
        limits.fp32_per_second / 1e9
    );
    for read in limits.read.chunk_by(|a, b| a.threads == b.threads) {
        let sizes: Vec<String> =
            read.iter().map(|r| format!("{:.0} at {}", r.bytes_per_second / 1e9, size(r.bytes))).collect();
        text += &format!("Reading, GB a second, {}: {}.\n", threads(read[0].threads), sizes.join(", "));
    }
    text
}

fn threads(count: usize) -> String {
    if count == 1 { "1 thread".to_string() } else { format!("{count} threads") }
}

fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

/// All that competed anywhere, in their order.
fn contenders(run: &Run) -> Vec<&str> {
    let mut names = Vec::new();
    for timing in run.cases.iter().flat_map(|case| &case.timings) {
        if !names.contains(&timing.contender.as_str()) {
            names.push(timing.contender.as_str());
        }
    }
    names
}

fn by<'a>(case: &'a Case, name: &str) -> Option<&'a Timing> {
    case.timings.iter().find(|timing| timing.contender == name)
}

/// The cells that say which case it is, after those of the heading.
fn labels(run: &Run) -> (Vec<String>, impl Fn(&Case) -> Vec<String>) {
    // What all have in common is said once.
    let source = &run.cases[0].source;
    let one = run.cases.iter().all(|case| case.source == *source);
    let first = if one { source.clone() } else { "layer".to_string() };
    let cells = move |case: &Case| {
        let count = if case.count > 1 { format!(" (x{})", case.count) } else { String::new() };
        let layer = if one { case.layer.clone() } else { format!("{}: {}", case.source, case.layer) };
        let shape = format!("{}x{}", case.out_features, case.in_features);
        vec![format!("{layer}{count}"), shape, case.batch.to_string()]
    };
    (vec![first, "out x in".to_string(), "batch".to_string()], cells)
}

fn times(run: &Run, names: &[&str]) -> String {
    let threads_differ = run.cases.iter().any(|case| case.threads != run.cases[0].threads);
    let (mut heading, labels) = labels(run);
    heading.extend(threads_differ.then(|| "threads".to_string()));
    // All in fp32 are about equally exact, so that one column for their errors says enough.
    let in_int8 = |name: &str| run.cases.iter().any(|case| by(case, name).is_some_and(|t| t.int8));
    for name in names {
        heading.push(name.to_string());
        heading.extend(in_int8(name).then(|| "error".to_string()));
    }
    heading.extend(["fp32 error", "faster", "of limit"].map(String::from));
    let mut rows = vec![heading];
    for case in &run.cases {
        let mut row = labels(case);
        row.extend(threads_differ.then(|| case.threads.to_string()));
        for name in names {
            let timing = by(case, name);
            row.push(timing.map_or_else(|| "-".to_string(), spread));
            row.extend(in_int8(name).then(|| timing.map_or_else(|| "-".to_string(), |t| share(t.error))));
        }
        let fp32 = case.timings.iter().filter(|t| !t.int8).map(|t| t.error).max_by(f64::total_cmp);
        row.push(fp32.map_or_else(|| "-".to_string(), share));
        row.push(case.speed_up().map_or_else(|| "-".to_string(), |speed_up| format!("{speed_up:.2}x")));
        row.push(format!("{:.0}% {}", 100.0 * case.limit_share, case.limit));
        rows.push(row);
    }
    table::aligned(&rows, false)
}

fn spread(timing: &Timing) -> String {
    let half = 50.0 * (timing.high - timing.low) / timing.median;
    format!("{} ±{half:.0}%", micros(timing.median))
}

fn share(error: f64) -> String {
    if error < 1e-3 { format!("{error:.0e}") } else { format!("{error:.3}") }
}

fn micros(seconds: f64) -> String {
    let us = seconds * 1e6;
    match us {
        0.0..10.0 => format!("{us:.2}"),
        10.0..1000.0 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

fn parts(run: &Run, names: &[&str]) -> String {
    let pack = |case: &Case, name: &str| by(case, name).and_then(|timing| timing.pack);
    let packing: Vec<&str> =
        names.iter().copied().filter(|name| run.cases.iter().any(|case| pack(case, name).is_some())).collect();
    // The parts are those of one thread, and packing is the same for any number.
    let split = run.cases.iter().any(|case| case.split.is_some());
    let threads = if split { 1 } else { run.cases[0].threads };
    let (mut heading, labels) = labels(run);
    if split {
        heading.extend([format!("{OURS}: quantize"), "multiply".to_string(), "rest".to_string()]);
    }
    heading.extend(packing.iter().map(|name| format!("{name}: pack")));
    let mut rows = vec![heading];
    for case in run.cases.iter().filter(|case| case.threads == threads) {
        let mut row = labels(case);
        row.extend(case.split.iter().flat_map(|split| [split.quantize, split.multiply, split.rest]).map(micros));
        let milliseconds = |seconds: f64| format!("{:.2}", seconds * 1e3);
        row.extend(packing.iter().map(|name| pack(case, name).map_or_else(|| "-".to_string(), milliseconds)));
        rows.push(row);
    }
    table::aligned(&rows, false)
}

/// All of it, for programs.
pub fn json(run: &Run, advice: Option<&Advice>) -> Value {
    let mut value = serde_json::to_value(run).expect("numbers and texts, with texts as keys");
    if let Some(advice) = advice {
        value["advice"] = advice.json();
    }
    value
}

/// Every timing, a line each.
pub fn csv(run: &Run) -> String {
    let mut text = "source,layer,count,out_features,in_features,batch,threads,contender,int8,median_us,low_us,high_us,\
                    error,pack_us,speed_up,limit_share,limit\n"
        .to_string();
    let us = |seconds: f64| format!("{:.4}", seconds * 1e6);
    for case in &run.cases {
        for t in &case.timings {
            let ours = t.contender == OURS;
            let cells = [
                quoted(&case.source),
                quoted(&case.layer),
                case.count.to_string(),
                case.out_features.to_string(),
                case.in_features.to_string(),
                case.batch.to_string(),
                case.threads.to_string(),
                quoted(&t.contender),
                t.int8.to_string(),
                us(t.median),
                us(t.low),
                us(t.high),
                format!("{:.3e}", t.error),
                t.pack.map_or_else(String::new, us),
                case.best_fp32().map_or_else(String::new, |best| format!("{:.4}", best.median / t.median)),
                if ours { format!("{:.4}", case.limit_share) } else { String::new() },
                if ours { case.limit.to_string() } else { String::new() },
            ];
            text += &format!("{}\n", cells.join(","));
        }
    }
    text
}

/// A cell of CSV.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}
