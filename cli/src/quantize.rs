//! `fbgemm quantize` and `fbgemm inspect`: checkpoints on disk.

use crate::stdio::{complain, print, say};
use crate::{Exit, table};
use fbgemm::{InputScheme, ModelFile, QuantizeOptions, QuantizeReport, WeightScheme, quantize_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};
use memmap2::Mmap;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What to quantize, and where to.
#[derive(clap::Args)]
pub struct Quantize {
    /// The checkpoint, a safetensors file
    input: PathBuf,
    /// The file to write; it appears whole or not at all
    #[arg(required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Only layers whose name matches (`*`: any text, `?`: one character); may be repeated
    ///
    /// Embeddings stay as they are, unless a pattern without `*` and `?` is their name.
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// No layers whose name matches; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Only layers with at least so many inputs and outputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_features: usize,
    /// Seven bits for the weights: the same bits on every CPU
    #[arg(long)]
    reduced: bool,
    /// A scale for each output of a layer, not one for all
    #[arg(long)]
    per_channel: bool,
    /// Zero points of 0 for the weights
    #[arg(long)]
    symmetric: bool,
    /// How the layers quantize their inputs: per_tensor, per_row, aten (as PyTorch's linear_dynamic), fixed SCALE
    /// ZERO_POINT; and `reduced` behind it for seven bits, as "per_row reduced"
    #[arg(long, value_name = "SCHEME", default_value = "per_tensor")]
    input_scheme: InputScheme,
    /// Weights in fp16 in place of int8
    #[arg(long, conflicts_with_all = ["reduced", "per_channel", "symmetric", "input_scheme"])]
    fp16: bool,
    /// Show what would be done, errors of the weights included, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Quantizes and prints the report.
pub fn run(arguments: &Quantize) -> io::Result<Exit> {
    let weights = WeightScheme::new();
    let weights = if arguments.reduced { weights.reduced_range() } else { weights };
    let weights = if arguments.per_channel { weights.per_channel() } else { weights };
    let weights = if arguments.symmetric { weights.symmetric() } else { weights };
    let mut options = QuantizeOptions::new().min_features(arguments.min_features);
    options = options.weights(weights).input(arguments.input_scheme);
    if arguments.fp16 {
        options = options.fp16();
    }
    options = arguments.include.iter().fold(options, QuantizeOptions::include);
    options = arguments.exclude.iter().fold(options, QuantizeOptions::exclude);
    let output = arguments.output.as_deref().filter(|_| !arguments.dry_run);
    if let Err(e) = fbgemm::cpu_support() {
        return Ok(Exit::refused(&e));
    }
    let result = map(&arguments.input).and_then(|bytes| {
        let file = ModelFile::parse(&bytes).map_err(|e| about(&arguments.input, &e))?;
        let style = ProgressStyle::with_template("quantizing {bar:30} {pos}/{len} tensors").expect("a fixed template");
        let bar = ProgressBar::new(0).with_style(style);
        let report = quantize_checkpoint(&file, &options, output, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        Ok((report.map_err(|e| e.chain())?, bytes.len()))
    });
    let (report, before) = match result {
        Ok(result) => result,
        Err(e) => {
            complain!("error: {e}");
            return Ok(Exit::BadInput);
        }
    };
    let after = output.and_then(|path| Some(path.metadata().ok()?.len()));
    if arguments.json {
        say!("{}", as_json(&report, before, after))?;
    } else {
        print(format_args!("{report}"))?;
        say!("\nMB: of the file. Error: of the weight, relative. Saturating: pairs of weights that can leave 16 bits")?;
        say!("on CPUs without VNNI.")?;
        let mb = |bytes: f64| bytes / 1e6;
        match (output, after) {
            (Some(path), Some(after)) => {
                let (before, after) = (mb(before as f64), mb(after as f64));
                say!("{}: {after:.1} MB, from {before:.1} MB.", path.display())?;
            }
            _ => say!("Nothing written.")?,
        }
    }
    Ok(Exit::Done)
}

fn as_json(report: &QuantizeReport, before: usize, after: Option<u64>) -> Value {
    let layers = report.layers.iter().map(|layer| {
        let weight = layer.outcome.as_ref().ok();
        json!({
            "layer": layer.name, "out_features": layer.out_features, "in_features": layer.in_features,
            "bytes_before": layer.bytes_before, "bytes_after": layer.bytes_after,
            "quantized": weight.is_some(),
            "relative_error": weight.map(|w| w.relative_error),
            "saturating_share": weight.map(|w| w.saturating_share),
            "reason": layer.outcome.as_ref().err().map(ToString::to_string),
        })
    });
    json!({"weights": if report.fp16 { "fp16".to_string() } else { report.weights.to_string() }, "inputs": report.input.to_string(),
        "layers": layers.collect::<Vec<_>>(), "quantized": report.quantized().count(),
        "file_bytes_before": before, "file_bytes_after": after})
}

/// Prints what is in a file.
pub fn inspect(path: &Path, as_json: bool) -> io::Result<Exit> {
    let result = map(path).and_then(|bytes| {
        let file = ModelFile::parse(&bytes).map_err(|e| about(path, &e))?;
        describe(&file, bytes.len(), as_json).map_err(|e| about(path, &e))
    });
    match result {
        Ok(text) => {
            say!("{}", text.trim_end())?;
            Ok(Exit::Done)
        }
        Err(e) => {
            complain!("error: {e}");
            Ok(Exit::BadInput)
        }
    }
}

fn describe(file: &ModelFile, size: usize, as_json: bool) -> fbgemm::Result<String> {
    let mut layers = Vec::new();
    for name in file.quantized_layers() {
        // Read whole, so that a layer that is listed can be loaded.
        let layer = file.portable(name)?;
        let weight = layer.weight();
        let pairs = weight.out_features() * weight.in_features().div_ceil(2);
        layers.push((name, layer.bias().is_some(), layer.saturation_risk() as f64 / pairs as f64, layer));
    }
    let parts = ["weight", "scale", "zero_point", "col_offsets", "bias"];
    let of_layer = |layer| parts.map(|part| fbgemm::join_name(layer, part));
    let of_layers: BTreeSet<String> = file.quantized_layers().flat_map(of_layer).collect();
    let mut others = Vec::new();
    for name in file.tensor_names() {
        if !of_layers.contains(name) {
            others.push((name, file.describe(name)?));
        }
    }
    let half = file.half_layers().count();
    if as_json {
        let layers = layers.iter().map(|(name, bias, saturating, layer)| {
            let w = layer.weight();
            json!({"layer": name, "out_features": w.out_features(), "in_features": w.in_features(),
                "scales": w.scales(), "zero_points": w.zero_points(), "input": layer.input_scheme().to_string(), "bias": bias, "saturating_share": saturating})
        });
        let others = others.iter().map(
            |(name, (dtype, shape, bytes))| json!({"tensor": name, "dtype": dtype, "shape": shape, "bytes": bytes}),
        );
        let (layers, others): (Vec<_>, Vec<_>) = (layers.collect(), others.collect());
        return Ok(json!({"file_bytes": size, "metadata": file.metadata(), "quantized": layers, "fp16": file.half_layers().collect::<Vec<_>>(), "tensors": others})
            .to_string());
    }
    let mut text = format!(
        "{:.1} MB, {} layers in int8, {} in fp16, {} other tensors\n",
        size as f64 / 1e6,
        layers.len(),
        half,
        others.len()
    );
    for (key, value) in file.metadata() {
        text += &format!("{key} = {value}\n");
    }
    if !layers.is_empty() {
        let heading = ["layer in int8", "out x in", "scale", "zero point", "input", "bias", "saturating"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        for (name, bias, saturating, layer) in &layers {
            let w = layer.weight();
            rows.push(vec![
                name.to_string(),
                format!("{}x{}", w.out_features(), w.in_features()),
                spread(w.scales(), |scale| format!("{scale:.3e}")),
                spread(w.zero_points(), ToString::to_string),
                layer.input_scheme().to_string(),
                if *bias { "yes" } else { "no" }.to_string(),
                format!("{:.3}%", 100.0 * saturating),
            ]);
        }
        text += &format!("\n{}", table::aligned(&rows, false));
    }
    if !others.is_empty() {
        let mut rows = vec![["other tensor", "type", "shape", "bytes"].map(String::from).to_vec()];
        for (name, (dtype, shape, bytes)) in &others {
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            rows.push(vec![name.to_string(), dtype.clone(), shape.join("x"), bytes.to_string()]);
        }
        text += &format!("\n{}", table::aligned(&rows, false));
    }
    Ok(text)
}

/// The one value, or the least and the greatest of a layer with one for each output.
fn spread<T: PartialOrd>(values: &[T], show: impl Fn(&T) -> String) -> String {
    let by = |a: &&T, b: &&T| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal);
    match (values.iter().min_by(by), values.iter().max_by(by)) {
        (Some(least), Some(greatest)) if values.len() > 1 => format!("{}..{}", show(least), show(greatest)),
        (Some(one), _) => show(one),
        _ => String::new(),
    }
}

fn about(path: &Path, error: &fbgemm::Error) -> String {
    format!("{}: {}", path.display(), error.chain())
}

/// The file's bytes, without reading it into memory.
pub fn map(path: &Path) -> Result<Mmap, String> {
    let io = |e: io::Error| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(io)?;
    // SAFETY: the bytes must not change while they are mapped, which nobody can promise for a file; as with every
    // program that maps its input, the user upholds it by not writing to the checkpoint meanwhile.
    unsafe { Mmap::map(&file) }.map_err(io)
}
