//! `fbgemm verify`: PyTorch's cases through the public API, compared bit for bit.

use crate::stdio::{complain, say};
use crate::verify_embedding::{embedding, embedding_bag};
use crate::verify_recurrent::recurrent;
use crate::{Exit, table, verify_self};
use fbgemm::Isa;
use fbgemm_testkit::cases::{Case, CaseFile, Element};
use fbgemm_testkit::process::{LIMIT, lesser, stderr};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How an operator's cases of one file came out.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// The first difference of each failed case.
    differences: Vec<String>,
}

/// Checks the files, the command's own cases before them where `own`, prints a line for each operator of each, and says
/// how it went.
pub fn run(files: &[PathBuf], own: bool, as_json: bool) -> io::Result<Exit> {
    let isa = match fbgemm::cpu_support() {
        Ok(isa) => isa,
        Err(e) => return Ok(Exit::refused(&e)),
    };
    let (mut reports, mut bad_file, mut passed, mut failed) = (Vec::new(), false, 0, 0);
    let own = own.then(|| (PathBuf::from(verify_self::NAME), verify_self::check(isa)));
    let others = files.iter().map(|file| (file.clone(), check_file(file, isa)));
    for (file, checked) in own.into_iter().chain(others) {
        match checked {
            Ok(report) => {
                for op in report["ops"].as_array().into_iter().flatten() {
                    passed += op["passed"].as_u64().unwrap_or(0);
                    failed += op["failed"].as_u64().unwrap_or(0);
                }
                if !as_json {
                    print_report(&report)?;
                }
                reports.push(report);
            }
            Err(e) => {
                bad_file = true;
                complain!("error: {}", table::printable(&format!("{}: {e}", file.display())));
                reports.push(json!({"file": file.display().to_string(), "error": e}));
            }
        }
    }
    if as_json {
        say!("{}", json!({"isa": isa.variable(), "files": reports}))?;
    }
    Ok(match (bad_file, failed == 0 && passed > 0) {
        (true, _) => Exit::BadInput,
        (_, true) => Exit::Done,
        (_, false) => Exit::CheckFailed,
    })
}

fn print_report(report: &Value) -> io::Result<()> {
    let text = |value: &Value| table::printable(value.as_str().unwrap_or_default());
    let file = text(&report["file"]);
    for note in report["notes"].as_array().into_iter().flatten() {
        say!("{file}: note: {}", text(note))?;
    }
    for op in report["ops"].as_array().into_iter().flatten() {
        for difference in op["differences"].as_array().into_iter().flatten() {
            say!("  {}", text(difference))?;
        }
        let skipped = match op["skipped"].as_u64() {
            Some(n) if n > 0 => format!(", {n} skipped"),
            _ => String::new(),
        };
        say!("{file}: {}: {} passed, {} failed{skipped}", text(&op["op"]), op["passed"], op["failed"])?;
    }
    if let Some(verdict) = report["verdict"].as_str() {
        say!("{verdict}")?;
    }
    Ok(())
}

/// Checks one file on the instruction sets that can have made it, until its cases agree with one.
fn check_file(path: &Path, isa: Isa) -> Result<Value, String> {
    let file = CaseFile::read(path)?;
    let cases = file.cases()?;
    let mut tried: Vec<Run> = Vec::new();
    for set in sets_to_try(&file, isa) {
        let ops = if set == isa { check_cases(&cases)? } else { in_limited_process(path, set)? };
        tried.push(Run { set, ops });
        if tried[tried.len() - 1].count("failed") == 0 {
            break;
        }
    }
    // Of those that differ, the one that differs least tells most.
    let shown = tried.iter().min_by_key(|run| run.count("failed")).ok_or("no instruction set to compare on")?;
    Ok(json!({
        "file": path.display().to_string(),
        "isa": shown.set.variable(),
        "tried": tried.iter().map(|run| run.set.variable()).collect::<Vec<_>>(),
        "notes": notes(&file, &cases, isa, &tried, shown),
        "ops": shown.ops,
    }))
}

/// How a file's cases came out on an instruction set.
struct Run {
    set: Isa,
    /// For each operator, as `--json` has it.
    ops: Value,
}

impl Run {
    /// The operators' `passed` or `failed`, added up.
    fn count(&self, what: &str) -> u64 {
        self.ops.as_array().into_iter().flatten().filter_map(|op| op[what].as_u64()).sum()
    }
}

/// The instruction sets that can have made the file, likeliest first: the one that it names; else all that FBGEMM can
/// use here and that sum pairs of products as the file records. PyTorch's word for the CPU says which of these are
/// likelier, and no more: it is "AVX512" with and without VNNI, and another variable than FBGEMM's changes it.
///
/// Where the caller limited FBGEMM, or none of them can be used here, the one that FBGEMM uses.
fn sets_to_try(file: &CaseFile, isa: Isa) -> Vec<Isa> {
    if std::env::var_os(LIMIT).is_some() {
        return vec![isa];
    }
    let mut sets = vec![isa];
    sets.extend(lesser(isa));
    if let Some(named) = file.isa() {
        sets.retain(|set| set.variable() == named);
    } else {
        sets.retain(|set| file.recorded_pairs().is_none_or(|exact| exact == set.sums_pairs_exactly()));
        sets.sort_by_key(|set| !file.cpu().is_some_and(|word| set.variable().starts_with(word)));
    }
    if sets.is_empty() { vec![isa] } else { sets }
}

/// What to know of the instruction sets beside the counts.
fn notes(file: &CaseFile, cases: &[Case], isa: Isa, tried: &[Run], shown: &Run) -> Vec<String> {
    let made = file.cpu().unwrap_or("an unknown CPU");
    let set = shown.set;
    if file.isa() == Some(set.variable()) {
        let limited = || format!("made on {made}: FBGEMM was limited to it here, where it would use {isa}");
        return if set == isa { Vec::new() } else { vec![limited()] };
    }
    let list = |runs: &[Run]| runs.iter().map(|run| run.set.to_string()).collect::<Vec<_>>().join(", ");
    match (shown.count("failed"), tried) {
        (0, [differ @ .., _]) if file.isa().is_none() && shown.count("passed") > 0 => {
            let not = if differ.is_empty() { String::new() } else { format!(", not with {}", list(differ)) };
            let limited = || format!("; FBGEMM was limited to it here, where it would use {isa}");
            let limited = if set == isa { String::new() } else { limited() };
            vec![format!("made on {made}: the cases agree with {set}{not}{limited}")]
        }
        (1.., [_, _, ..]) => {
            let all = list(tried);
            vec![format!("made on {made}: the cases agree with none of {all}; the differences are those on {set}")]
        }
        _ => differences_to_expect(file, cases, set)
            .into_iter()
            .map(|differ| format!("made on {made}, compared on {set}{differ}"))
            .collect(),
    }
}

/// In what the cases can differ from this instruction set: nothing to say where they can't, an empty text where the file
/// does not tell.
fn differences_to_expect(file: &CaseFile, cases: &[Case], set: Isa) -> Vec<&'static str> {
    let of_fp16 = |case: &Case| case.op == "linear_fp16_weight";
    let of_int8 = |case: &Case| !of_fp16(case) && !case.op.starts_with("embedding");
    // What decides the bits: whether FBGEMM's int8 kernels clamp sums of two products, and in which order its fp16
    // kernels add up.
    let pairs = file.pairs_were_exact().map(|exact| exact == set.sums_pairs_exactly());
    let order = file.fp16_sums_were_ordered_as_on(set);
    [
        (cases.iter().any(of_int8), pairs, ": sums that saturate without VNNI differ"),
        (cases.iter().any(of_fp16), order, ": fp16 weights' sums in another order differ in their last bits"),
    ]
    .into_iter()
    .filter_map(|(of_this, same, differ)| match same {
        _ if !of_this => None,
        Some(true) => None,
        Some(false) => Some(differ),
        None => Some(""),
    })
    .collect()
}

/// How each operator's cases came out in this process.
pub fn check_cases(cases: &[Case]) -> Result<Value, String> {
    let mut ops: BTreeMap<&str, Tally> = BTreeMap::new();
    for case in cases {
        let tally = ops.entry(&case.op).or_default();
        match check_case(case)? {
            None => tally.skipped += 1,
            Some(Ok(())) => tally.passed += 1,
            Some(Err(difference)) => {
                tally.failed += 1;
                tally.differences.push(format!("case {}: {difference}", case.name));
            }
        }
    }
    Ok(ops
        .into_iter()
        .map(|(op, t)| {
            json!({"op": op, "passed": t.passed, "failed": t.failed, "skipped": t.skipped, "differences": t.differences})
        })
        .collect())
}

/// What this program says of the file's cases with FBGEMM limited to a lesser instruction set.
fn in_limited_process(path: &Path, set: Isa) -> Result<Value, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    // ATen's own variable for its kernels, whose width the sigmoid of recurrent layers follows.
    let aten = if set == Isa::Avx2 { "avx2" } else { "avx512" };
    let output = Command::new(program)
        .args(["verify", "--json"])
        .arg(path)
        .env(LIMIT, set.variable())
        .env("ATEN_CPU_CAPABILITY", aten)
        .output()
        .map_err(|e| format!("a process limited to {set} can't be started: {e}"))?;
    let mut answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("a process limited to {set} failed: {}", stderr(&output).trim()))?;
    if answer["isa"] != set.variable() {
        return Err(format!("a process limited to {set} used {}", answer["isa"]));
    }
    match answer["files"][0].take() {
        Value::Object(mut file) if !file.contains_key("error") => Ok(file["ops"].take()),
        other => Err(other["error"].as_str().unwrap_or("no answer").to_string()),
    }
}

/// `None` for what this version does not have or what PyTorch gave no output for; else the first difference.
pub type Outcome = Result<Option<Result<(), String>>, String>;

fn check_case(case: &Case) -> Outcome {
    match case.op.as_str() {
        "linear_int8_weight" => linear_int8_weight(case),
        "linear_dynamic" => linear_dynamic(case),
        "linear_fp16_weight" => linear_fp16_weight(case),
        "linear_static" => linear_static(case),
        "embedding_bag" => embedding_bag(case),
        "embedding" => embedding(case),
        _ => recurrent(case),
    }
}

fn linear_int8_weight(case: &Case) -> Result<Option<Result<(), String>>, String> {
    const EXPECTED: [&str; 5] = ["q_weight", "col_offsets", "scale", "zero_point", "output"];
    if !EXPECTED.iter().any(|name| case.has(name)) {
        return Ok(None);
    }
    let (shape, weight) = case.tensor::<f32>("weight")?;
    let [n, k] = shape[..] else {
        return Err(format!("case {:?}: weight has shape {shape:?}, expected 2 dimensions", case.name));
    };
    let (input_shape, input) = case.tensor::<f32>("input")?;
    let (_, bias) = case.tensor::<f32>("bias")?;
    let compare = || -> Result<Result<(), String>, fbgemm::Error> {
        let quantized = fbgemm::quantize_weight(&weight, n, k)?;
        let packed = fbgemm::pack_matrix(quantized.data(), k, n)?;
        let output = fbgemm::linear_int8_weight(&input, &quantized, &packed, Some(&bias))?;
        let mut output_shape = input_shape.clone();
        output_shape.pop();
        output_shape.push(n);
        Ok(same(case, "q_weight", &[n, k], quantized.data())
            .and_then(|()| same(case, "col_offsets", &[n], quantized.col_offsets()))
            .and_then(|()| same(case, "scale", &[1], &[f64::from(quantized.scale())]))
            .and_then(|()| same(case, "zero_point", &[1], &[i64::from(quantized.zero_point())]))
            .and_then(|()| same(case, "output", &output_shape, &output)))
    };
    Ok(Some(compare().unwrap_or_else(|e| Err(format!("this crate refused: {}", e.chain())))))
}

fn linear_dynamic(case: &Case) -> Result<Option<Result<(), String>>, String> {
    if !case.has("output") {
        return Ok(None);
    }
    let (mut output_shape, input) = case.tensor::<f32>("input")?;
    let (weight, bias) = (case.q_weight()?, case.bias()?);
    let compare = || -> Result<Result<(), String>, fbgemm::Error> {
        let weight = weight?;
        let packed = weight.pack()?;
        let run = if case.flag("relu") { fbgemm::linear_relu_dynamic } else { fbgemm::linear_dynamic };
        let output = run(&input, &weight, &packed, bias.as_deref(), case.flag("reduce_range"))?;
        output_shape.pop();
        output_shape.push(weight.out_features());
        Ok(same(case, "output", &output_shape, &output))
    };
    Ok(Some(compare().unwrap_or_else(|e| Err(format!("this crate refused: {}", e.chain())))))
}

fn linear_fp16_weight(case: &Case) -> Result<Option<Result<(), String>>, String> {
    if !case.has("output") {
        return Ok(None);
    }
    let (shape, weight) = case.tensor::<f32>("weight")?;
    let [n, k] = shape[..] else {
        return Err(format!("case {:?}: weight has shape {shape:?}, expected 2 dimensions", case.name));
    };
    let (mut output_shape, input) = case.tensor::<f32>("input")?;
    output_shape.pop();
    output_shape.push(n);
    let bias = case.bias()?;
    let compare = || -> Result<Result<(), String>, fbgemm::Error> {
        let packed = fbgemm::pack_matrix_fp16(&weight, n, k)?;
        let output = fbgemm::linear_fp16_weight(&input, &packed, bias.as_deref())?;
        Ok(same(case, "output", &output_shape, &output))
    };
    Ok(Some(compare().unwrap_or_else(|e| Err(format!("this crate refused: {}", e.chain())))))
}

fn linear_static(case: &Case) -> Result<Option<Result<(), String>>, String> {
    if !case.has("q_output") {
        return Ok(None);
    }
    let (mut output_shape, input) = case.tensor::<u8>("q_input")?;
    let (weight, bias) = (case.q_weight()?, case.bias()?);
    let (of_input, of_output) = (case.u8_params("input")?, case.u8_params("output")?);
    let compare = || -> Result<Result<(), String>, fbgemm::Error> {
        let weight = weight?;
        let packed = weight.pack()?;
        let run = if case.flag("relu") { fbgemm::linear_relu_static } else { fbgemm::linear_static };
        let output = run(&input, of_input?, &weight, &packed, bias.as_deref(), of_output?)?;
        output_shape.pop();
        output_shape.push(weight.out_features());
        Ok(same(case, "q_output", &output_shape, &output))
    };
    Ok(Some(compare().unwrap_or_else(|e| Err(format!("this crate refused: {}", e.chain())))))
}

/// The first difference, by bits, between a tensor that the case expects and ours. What it doesn't have is right.
pub fn same<T: Element + Bits>(case: &Case, name: &str, shape: &[usize], ours: &[T]) -> Result<(), String> {
    if !case.has(name) {
        return Ok(());
    }
    let (expected_shape, expected) = case.tensor::<T>(name)?;
    if expected_shape != shape {
        return Err(format!("{name} has shape {shape:?}, expected {expected_shape:?}"));
    }
    match expected.iter().zip(ours).position(|(a, b)| a.bits() != b.bits()) {
        None => Ok(()),
        Some(at) => {
            let index: Vec<String> = index_of(at, shape).iter().map(usize::to_string).collect();
            let (expected, ours) = (&expected[at], &ours[at]);
            let (a, b) = (expected.bits(), ours.bits());
            Err(format!("{name}[{}] is {ours} (bits {b:x}), expected {expected} (bits {a:x})", index.join(",")))
        }
    }
}

fn index_of(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape.iter().rev().map(|&size| (at % size, at /= size).0).collect();
    index.reverse();
    index
}

/// A value's bits, for comparison: NaNs with other bits differ, as do the two zeros.
pub trait Bits: Display {
    /// The bits.
    fn bits(&self) -> u64;
}

macro_rules! bits {
    ($($rust:ty: $x:ident => $bits:expr),*) => {$(
        impl Bits for $rust {
            fn bits(&self) -> u64 {
                let $x = *self;
                $bits
            }
        }
    )*};
}
bits!(
    f32: x => x.to_bits().into(),
    f64: x => x.to_bits(),
    i8: x => (x as u8).into(),
    u8: x => x.into(),
    i32: x => (x as u32).into(),
    i64: x => x as u64
);
