//! `fbgemm inspect`: what is in a file, or in several as one.

use crate::stdio::{complain, say};
use crate::{Exit, table};
use fbgemm::ModelFile;
use serde_json::json;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// Prints what is in a file.
pub fn run(path: &Path, as_json: bool) -> io::Result<Exit> {
    match open(path).and_then(|file| describe(&file, as_json)) {
        Ok(text) => {
            say!("{}", text.trim_end())?;
            Ok(Exit::Done)
        }
        Err(e) => {
            complain!("error: {}", about(path, &e));
            Ok(Exit::BadInput)
        }
    }
}

/// The model at a path; `-` is standard input.
pub fn open(path: &Path) -> fbgemm::Result<ModelFile<'static>> {
    ModelFile::open(if path == Path::new("-") { Path::new("/dev/stdin") } else { path })
}

/// An error, with the path that it is about unless it begins with one itself.
pub fn about(path: &Path, error: &fbgemm::Error) -> String {
    use fbgemm::Error::{InputChanged, Io, OneOfShards};
    let said = error.chain();
    table::printable(&match error {
        Io { .. } | InputChanged { .. } | OneOfShards { .. } => said,
        _ => format!("{}: {said}", path.display()),
    })
}

fn describe(file: &ModelFile, as_json: bool) -> fbgemm::Result<String> {
    let mut layers = Vec::new();
    let fp16: BTreeSet<&str> = file.fp16_layers().collect();
    for name in file.quantized_layers().filter(|name| !fp16.contains(name)) {
        // Read whole, so that a layer that is listed can be loaded.
        let layer = file.portable(name)?;
        let weight = layer.weight();
        let pairs = weight.out_features() * weight.in_features().div_ceil(2);
        layers.push((name, layer.bias().is_some(), layer.saturation_risk() as f64 / pairs as f64, layer));
    }
    let mut tables = Vec::new();
    for name in file.embedding_tables() {
        // Read whole, too, with the check of every row.
        tables.push((name, file.embedding(name)?));
    }
    let parts = ["weight", "scale", "zero_point", "col_offsets", "bias"];
    let of_layer = |layer| parts.map(|part| fbgemm::part_name(layer, part));
    let of_tables = file.embedding_tables().map(|name| fbgemm::join_name(name, "weight"));
    let of_layers: BTreeSet<String> = file.quantized_layers().flat_map(of_layer).chain(of_tables).collect();
    let mut others = Vec::new();
    for name in file.tensor_names() {
        if !of_layers.contains(name) {
            others.push((name, file.describe(name)?));
        }
    }
    let size = file.bytes();
    if as_json {
        let layers = layers.iter().map(|(name, bias, saturating, layer)| {
            let w = layer.weight();
            json!({"layer": name, "out_features": w.out_features(), "in_features": w.in_features(),
                "scales": w.scales(), "zero_points": w.zero_points(), "input": layer.input_scheme().to_string(), "bias": bias,
                "saturating_share": saturating})
        });
        let others = others.iter().map(
            |(name, (dtype, shape, bytes))| json!({"tensor": name, "dtype": dtype, "shape": shape, "bytes": bytes}),
        );
        let tables = tables.iter().map(|(name, table)| {
            json!({"embedding": name, "rows": table.rows(), "dimension": table.dimension(), "bytes": table.bytes(),
                "format": table.table().ok().map(|table| table.format().to_string())})
        });
        let (layers, tables, others): (Vec<_>, Vec<_>, Vec<_>) = (layers.collect(), tables.collect(), others.collect());
        return Ok(json!({"file_bytes": size, "metadata": file.metadata(), "quantized": layers, "fp16": fp16,
            "embeddings": tables, "tensors": others})
        .to_string());
    }
    let mut text = format!(
        "{:.1} MB, {} layers in int8, {} in fp16, {} embeddings in 8 bits or fewer, {} other tensors\n",
        size as f64 / 1e6,
        layers.len(),
        fp16.len(),
        tables.len(),
        others.len()
    );
    for (key, value) in file.metadata() {
        text += &format!("{} = {}\n", table::printable(key), table::printable(value));
    }
    if !layers.is_empty() {
        let heading = ["layer in int8", "out x in", "scale", "zero point", "input", "bias", "saturating"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        for (name, bias, saturating, layer) in &layers {
            let w = layer.weight();
            rows.push(vec![
                table::printable(name),
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
    if !tables.is_empty() {
        let mut rows = vec![["embedding", "rows x dimension", "format", "bytes"].map(String::from).to_vec()];
        for (name, table) in &tables {
            let format = table.table().map(|table| table.format().to_string()).unwrap_or_default();
            let shape = format!("{}x{}", table.rows(), table.dimension());
            rows.push(vec![table::printable(name), shape, format, table.bytes().to_string()]);
        }
        text += &format!("\n{}", table::aligned(&rows, false));
    }
    if !others.is_empty() {
        let mut rows = vec![["other tensor", "type", "shape", "bytes"].map(String::from).to_vec()];
        for (name, (dtype, shape, bytes)) in &others {
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            rows.push(vec![table::printable(name), dtype.clone(), shape.join("x"), bytes.to_string()]);
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
