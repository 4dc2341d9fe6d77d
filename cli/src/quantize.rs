//! `fbgemm quantize`: a checkpoint's linear layers, from file to file.

use crate::inspect::{about, open};
use crate::stdio::{complain, print, print_error, say};
use crate::{Exit, interrupt, table};
use fbgemm::{
    CheckpointOptions, EmbeddingFormat, InputScheme, Int8Scheme, LinearScheme, QuantizeOptions, QuantizeReport,
    quantize_checkpoint,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// What to quantize, how, and where to.
#[derive(clap::Args)]
pub struct Quantize {
    /// The checkpoint: a safetensors file, an index of shards, a folder with one of them, or `-` for standard input
    input: PathBuf,
    /// The file to write (`-`: standard output); it appears whole or not at all
    #[arg(required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// How to quantize, by name: accurate (a scale for each output and each row), portable (the same with weights of
    /// seven bits, for the same answer on every CPU), pytorch (as fbgemm_linear_int8_weight, bit for bit), fp16
    #[arg(long, value_name = "NAME", default_value = "pytorch")]
    scheme: LinearScheme,
    /// Only layers whose name matches (`*`: any text, `?`: one character); this and the other patterns may be repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// No layers whose name matches
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Only layers with at least so many inputs and outputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_features: usize,
    /// What matches is a linear layer, whatever the evidence: `in_proj_weight` becomes the layer `in_proj`
    #[arg(long, value_name = "PATTERN")]
    linear: Vec<String>,
    /// What matches is an embedding, whatever the evidence, and stays
    #[arg(long, value_name = "PATTERN")]
    embedding: Vec<String>,
    /// What matches is a linear layer stored [in, out], as GPT-2's are, and is transposed
    #[arg(long, value_name = "PATTERN")]
    transpose: Vec<String>,
    /// Give LAYER a quantized weight of its own from the one embedding that matches, which stays: for tied heads
    #[arg(long, value_name = "LAYER=PATTERN", value_parser = pair)]
    untie: Vec<(String, String)>,
    /// Take this off names that begin with it: `module.`, `_orig_mod.`
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Vec<String>,
    /// A scale for each output of a layer, whatever the scheme has
    #[arg(long)]
    per_channel: bool,
    /// Zero points of 0 for the weights
    #[arg(long)]
    symmetric: bool,
    /// Seven bits for the weights: the same bits on every CPU
    #[arg(long, alias = "reduced")]
    seven_bits: bool,
    /// How the layers quantize their inputs: per_tensor, per_row, aten (as PyTorch's linear_dynamic), static SCALE
    /// ZERO_POINT; and `reduce_range` behind it for seven bits, as "per_row reduce_range"
    #[arg(long, value_name = "SCHEME")]
    input_scheme: Option<InputScheme>,
    /// The same as --scheme fp16
    #[arg(long, conflicts_with_all = ["scheme", "seven_bits", "per_channel", "symmetric", "input_scheme"])]
    fp16: bool,
    /// Embeddings too, in 8, 4 or 2 bits or fp16: one scale and bias for each row
    #[arg(long, value_name = "BITS", value_parser = embedding_format)]
    embeddings: Option<EmbeddingFormat>,
    /// Write several files of at most this size (2GB, 500MB, or bytes) and an index, where one would be larger
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_shard_size: Option<u64>,
    /// Where the output can't be replaced by renaming another file to it, write into it: a crash then leaves it broken
    #[arg(long)]
    in_place: bool,
    /// Show what would be done, errors of the weights included, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `LAYER=PATTERN`, as an argument.
fn pair(text: &str) -> Result<(String, String), String> {
    let (layer, pattern) = text.split_once('=').ok_or("expected LAYER=PATTERN, such as lm_head=*.wte")?;
    Ok((layer.to_string(), pattern.to_string()))
}

/// `8`, `4`, `2` or `fp16`, as an argument.
fn embedding_format(text: &str) -> Result<EmbeddingFormat, String> {
    match text {
        "8" | "int8" => Ok(EmbeddingFormat::Int8),
        "4" | "int4" => Ok(EmbeddingFormat::Int4),
        "2" | "int2" => Ok(EmbeddingFormat::Int2),
        "16" | "fp16" => Ok(EmbeddingFormat::Fp16),
        _ => Err("expected 8, 4, 2 or fp16".to_string()),
    }
}

/// A number of bytes, as an argument.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KIB" => 1024.0,
        "MIB" => 1024.0 * 1024.0,
        "GIB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("{unit:?} is no unit, expected KB, MB, GB, KiB, MiB or GiB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number * factor >= 1.0 => Ok((number * factor) as u64),
        _ => Err("expected a size above 0, such as 2GB".to_string()),
    }
}

impl Quantize {
    fn scheme(&self) -> Result<LinearScheme, String> {
        let finer = self.seven_bits || self.per_channel || self.symmetric || self.input_scheme.is_some();
        let Int8Scheme { mut weights, mut inputs } = match self.scheme {
            LinearScheme::Int8(scheme) if !self.fp16 => scheme,
            _ if finer => return Err("fp16 has no scales, zero points or bits to choose".to_string()),
            _ => return Ok(LinearScheme::Fp16),
        };
        weights = if self.seven_bits { weights.reduce_range() } else { weights };
        weights = if self.per_channel { weights.per_channel() } else { weights };
        weights = if self.symmetric { weights.symmetric() } else { weights };
        inputs = self.input_scheme.unwrap_or(inputs);
        Ok(LinearScheme::Int8(Int8Scheme { weights, inputs }))
    }

    fn options(&self) -> Result<CheckpointOptions, String> {
        let layers = QuantizeOptions::new(self.scheme()?).min_features(self.min_features);
        let layers = self.include.iter().fold(layers, QuantizeOptions::include);
        let layers = self.exclude.iter().fold(layers, QuantizeOptions::exclude);
        let layers = self.embeddings.into_iter().fold(layers, QuantizeOptions::embeddings);
        let options = CheckpointOptions::new(layers);
        let options = self.linear.iter().fold(options, CheckpointOptions::linear);
        let options = self.embedding.iter().fold(options, CheckpointOptions::embedding);
        let options = self.transpose.iter().fold(options, CheckpointOptions::transpose);
        let options = self.untie.iter().fold(options, |options, (layer, of)| options.untie(layer, of));
        let options = self.strip_prefix.iter().fold(options, CheckpointOptions::strip_prefix);
        let options = self.max_shard_size.into_iter().fold(options, CheckpointOptions::max_shard_size);
        Ok(if self.in_place { options.in_place() } else { options })
    }
}

/// Quantizes and prints the report: on standard error where the file goes to standard output.
pub fn run(arguments: &Quantize) -> io::Result<Exit> {
    let refuse = |said: String| {
        complain!("error: {}", table::printable(&said));
        Ok(Exit::BadInput)
    };
    let options = match arguments.options() {
        Ok(options) => options,
        Err(e) => return refuse(e),
    };
    if let Err(e) = fbgemm::cpu_support() {
        return Ok(Exit::refused(&e));
    }
    let output = arguments.output.as_deref().filter(|_| !arguments.dry_run);
    let to_stdout = output == Some(Path::new("-"));
    if to_stdout && (io::stdout().is_terminal() || arguments.json || arguments.max_shard_size.is_some()) {
        return refuse("standard output takes one file: not a terminal, no --json, no --max-shard-size".to_string());
    }
    let style = ProgressStyle::with_template("quantizing {bar:30} {pos}/{len} tensors").expect("a fixed template");
    let bar = ProgressBar::new(0).with_style(style);
    let input = &arguments.input;
    let file = match open(input) {
        Ok(file) => file,
        Err(e) => return refuse(about(input, &e)),
    };
    let stopped = interrupt::Flag::new(); // before the first temporary file
    let spool = if to_stdout { Some(tempfile::NamedTempFile::new()?) } else { None };
    let path = spool.as_ref().map(tempfile::NamedTempFile::path).or(output);
    let is_file = path.and_then(|path| path.metadata().ok()).is_none_or(|there| there.is_file());
    let report = quantize_checkpoint(&file, &options, path, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if done == total && !is_file {
            stopped.let_go(); // what follows waits for a reader
        }
        stopped.as_control_flow()
    });
    bar.finish_and_clear();
    let report = match report {
        Ok(report) => report,
        Err(fbgemm::Error::Interrupted) => {
            drop(spool);
            stopped.end(); // as the signal would have, now that nothing is left behind
            return refuse(fbgemm::Error::Interrupted.to_string());
        }
        // Of the output, if it says so; else of the input.
        Err(e @ (fbgemm::Error::Io { .. } | fbgemm::Error::CannotReplace { .. })) => return refuse(e.chain()),
        Err(e) => return refuse(about(input, &e)),
    };
    stopped.let_go();
    if let Some(spool) = spool {
        let mut whole = std::fs::File::open(spool.path())?;
        drop(spool); // its name, before a reader is waited for
        crate::stdio::unless_closed(io::copy(&mut whole, &mut io::stdout().lock()).map(drop))?;
        print_error(format_args!("{report}"));
        return Ok(Exit::Done);
    }
    let (before, after) = (file.bytes(), size_of(&report.files));
    if arguments.json {
        say!("{}", as_json(&report, before, after))?;
        return Ok(Exit::Done);
    }
    print(format_args!("{report}"))?;
    say!("\nMB: of the file. Error: of the weight, relative. To zero: weights that became 0. Saturating: pairs of")?;
    say!("weights that can leave 16 bits on CPUs without VNNI.")?;
    match (output, after) {
        (Some(path), Some(after)) => {
            let (before, after, files) = (before as f64 / 1e6, after as f64 / 1e6, report.files.len());
            let files = if files == 1 { String::new() } else { format!(" in {files} files") };
            let path = table::printable(&path.display().to_string());
            say!("{path}: {after:.1} MB{files}, from {before:.1} MB.")?;
        }
        (Some(path), None) => say!("Written to {}.", table::printable(&path.display().to_string()))?,
        (None, _) => say!("Nothing written.")?,
    }
    Ok(Exit::Done)
}

/// The size of all files together; `None` where there are none, or what was written to keeps nothing.
fn size_of(files: &[PathBuf]) -> Option<u64> {
    let size = |path: &PathBuf| path.metadata().ok().filter(|about| about.is_file()).map(|about| about.len());
    files.iter().map(size).sum::<Option<u64>>().filter(|_| !files.is_empty())
}

fn as_json(report: &QuantizeReport, before: u64, after: Option<u64>) -> Value {
    let layers = report.layers.iter().map(|layer| {
        let weight = layer.outcome.as_ref().ok();
        json!({
            "layer": layer.name, "out_features": layer.out_features, "in_features": layer.in_features,
            "bytes_before": layer.bytes_before, "bytes_after": layer.bytes_after,
            "quantized": weight.is_some(),
            "relative_error": weight.map(|w| w.relative_error),
            "worst_row_error": weight.map(|w| w.worst_row_error),
            "zeroed_share": weight.map(|w| w.zeroed_share),
            "saturating_share": weight.map(|w| w.saturating_share),
            "better": weight.and_then(|w| w.better).map(|better| json!({
                "scheme": better.scheme.to_string(), "relative_error": better.relative_error,
                "worst_row_error": better.worst_row_error,
            })),
            "reason": layer.outcome.as_ref().err().map(ToString::to_string),
            "evidence": layer.evidence,
        })
    });
    let (weights, inputs) = match report.scheme {
        LinearScheme::Int8(scheme) => (scheme.weights.to_string(), scheme.inputs.to_string()),
        other => (other.to_string(), "f32".to_string()),
    };
    json!({"weights": weights, "inputs": inputs, "layers": layers.collect::<Vec<_>>(),
        "quantized": report.quantized().count(),
        "files": report.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "file_bytes_before": before, "file_bytes_after": after})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        let sizes = [("1", 1), ("42KB", 42_000), ("1.5 GB", 1_500_000_000), ("2GiB", 2 << 30), ("10mib", 10 << 20)];
        for (text, bytes) in sizes {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "GB", "-1", "5 TB", "1e9"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
