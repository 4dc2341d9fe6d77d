//! Quantizing a checkpoint from file to file.

use super::checkpoint_options::{CheckpointChooser, CheckpointOptions};
use super::foreign::{self, Foreign, Weight};
use super::format::{
    EMBEDDING_KEY, FOREIGN_KEY, FP16_KEY, INPUT_KEY, OF_LAYERS, floats_of, fp16_bytes, fp16_tensors, is_float,
    note_input, quantized_bytes, quantized_tensors, wrong,
};
use super::model_file::ModelFile;
use super::write::{Part, Target, write};
use crate::cpu::SupportedCpu;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::ffi::{check_fp16_shape, check_int8_shape};
use crate::model::kind::{Kind, Matrix, TableSizes, kinds};
use crate::model::names::{join_name, layer_of, part_name, recurrent_module};
use crate::model::quantize::{Quantized, at_offset, quantize_linear, rows_at_once};
use crate::model::report::{LayerKind, LayerReport, QuantizeReport, RowErrors, Skipped, WeightReport};
use crate::ops::embedding::{EmbeddingFormat, pack_embedding};
use crate::quant::scheme::LinearScheme;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

/// Quantizes a checkpoint's linear layers and stores all of it at `path`, layer by layer: no more than one layer is in
/// memory. Without a `path` (a dry run) it only reports.
///
/// A layer is a tensor of 2 dimensions in F32, F64, F16 or BF16 named `<layer>.weight` that is a linear layer's by its
/// bias, the words of its name and what `config.json` beside the file says; the report tells for each what spoke for
/// it, and [`CheckpointOptions`] can say otherwise. Tensors of 2 dimensions by other names are reported and left.
/// Weights that bitsandbytes or compressed-tensors have quantized to int8 become this crate's own, exactly; float8
/// weights are multiplied with their scales and quantized; of others there is an error. All other tensors and the
/// metadata are copied; a quantized layer's bias becomes F32.
///
/// `progress` is told how many of how many layers and other tensors are done, and can stop the work: nothing is then
/// written.
///
/// # Errors
/// As [`quantize_modules`](crate::quantize_modules), with the file's candidates for layers;
/// [`Error::ForeignWeight`]; [`Error::InLayer`] around [`Error::WrongTensor`] for a bias that doesn't fit;
/// [`Error::NameTaken`]; [`Error::DuplicateName`]; [`Error::InputChanged`]; [`Error::CannotReplace`];
/// [`Error::Interrupted`]; [`Error::Io`].
pub fn quantize_checkpoint(
    file: &ModelFile,
    options: &CheckpointOptions,
    path: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<QuantizeReport> {
    SupportedCpu::get()?;
    let scheme = options.quantize.scheme();
    let mut report = QuantizeReport::new(scheme, options.quantize.embedding_format());
    let names = Names::of(file, options)?;
    let (layers, tables) = plan(file, &names, options, &mut report)?;
    let mut metadata = names.metadata(file);
    check_names(&names, &layers)?;

    let by_name = report.layers.iter_mut().map(|layer| (layer.name.clone(), layer));
    let reports = RefCell::new(by_name.collect::<BTreeMap<String, &mut LayerReport>>());
    let mut parts = Vec::new();
    let of_layers = layers.iter().flat_map(|layer| layer.used.iter().map(String::as_str));
    let used: BTreeSet<&str> = of_layers.chain(tables.iter().map(|table| table.weight.as_str())).collect();
    for (new, old) in &names.0 {
        if !used.contains(old.as_str()) {
            parts.push((new.clone(), Part::copied(new, file.tensor(old)?)));
            if let Some(layer) = layer_of(new, "weight")
                && file.tensor(old)?.dtype() == Dtype::I8
                && !file.is_int8(&layer_of(old, "weight").unwrap_or_default())
            {
                metadata.insert(format!("{FOREIGN_KEY}{layer}"), "1".to_string());
            }
        }
    }
    for layer in &layers {
        let tensors = layer.tensors(file, scheme, &mut metadata)?;
        let reports = &reports;
        parts.push((
            layer.name.clone(),
            Part::made(tensors, move || {
                let (about, bytes) = layer.quantized(file, scheme).map_err(|e| match e {
                    Error::InputChanged { .. } | Error::Io { .. } => e, // not the layer's fault
                    e => e.in_layer(&layer.name),
                })?;
                if let Some(report) = reports.borrow_mut().get_mut(&layer.name) {
                    report.bytes_after = bytes.iter().map(|bytes| bytes.len()).sum();
                    report.outcome = Ok(about);
                }
                Ok(bytes)
            }),
        ));
    }
    for table in &tables {
        let format = options.quantize.embedding_format().unwrap_or(EmbeddingFormat::Fp32);
        let tensor = table.tensor(format, &mut metadata).map_err(|e| e.in_layer(&table.name))?;
        let (reports, bytes) = (&reports, tensor.2.iter().product::<usize>() * tensor.1.bitsize() / 8);
        parts.push((
            table.name.clone(),
            Part::streamed(tensor, move |write| {
                let about = table.pack(file, format, write)?;
                if let Some(report) = reports.borrow_mut().get_mut(&table.name) {
                    (report.bytes_after, report.outcome) = (bytes, Ok(about));
                }
                Ok(())
            }),
        ));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<Part> = parts.into_iter().map(|(_, part)| part).collect();
    let (total, mut files) = (parts.len(), Vec::new());
    match path {
        Some(path) => {
            let target = Target { path, max_shard_size: options.max_shard_size, in_place: options.in_place };
            // Before the last part is told as done, and so before anything is replaced.
            let mut changed = Ok(());
            let written = write(parts, metadata, &target, &mut |done| {
                if done == total {
                    changed = file.check_unchanged();
                }
                if changed.is_err() { ControlFlow::Break(()) } else { progress(done, total) }
            });
            changed?;
            files = written?;
        }
        None => {
            for (i, part) in parts.into_iter().enumerate() {
                part.make()?;
                if progress(i + 1, total).is_break() {
                    return Err(Error::Interrupted);
                }
            }
            file.check_unchanged()?;
        }
    }
    report.files = files;
    Ok(report)
}

/// The tensors' names as they are to be, each with the one that it has in the file.
struct Names(BTreeMap<String, String>);

impl Names {
    fn of(file: &ModelFile, options: &CheckpointOptions) -> Result<Self> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut used = vec![false; options.strip_prefix.len()];
        for old in file.tensor_names() {
            let mut new = old;
            for (prefix, used) in options.strip_prefix.iter().zip(&mut used) {
                if let Some(rest) = new.strip_prefix(prefix.as_str()).filter(|rest| !rest.is_empty()) {
                    (new, *used) = (rest, true);
                }
            }
            if let Some(first) = names.insert(new.to_string(), old.to_string()) {
                let (name, second) = (new.to_string(), format!("{old:?}, without its prefix"));
                return Err(Error::NameClash { name, first: format!("{first:?}"), second });
            }
        }
        match used.iter().position(|used| !used) {
            Some(unused) => Err(Error::UnusedPattern { pattern: options.strip_prefix[unused].clone() }),
            None => Ok(Self(names)),
        }
    }

    /// The file's metadata, of which what is said of layers goes with them: to their new names, and not to layers that
    /// the file has not.
    fn metadata(&self, file: &ModelFile) -> BTreeMap<String, String> {
        let of_layer = |key: &str| OF_LAYERS.iter().any(|prefix| key.starts_with(prefix));
        let all = file.metadata().iter().map(|(key, value)| (key.clone(), value.clone()));
        let mut metadata: BTreeMap<String, String> = all.filter(|(key, _)| !of_layer(key)).collect();
        for (new, old) in &self.0 {
            let (Some(new), Some(old)) = (layer_of(new, "weight"), layer_of(old, "weight")) else { continue };
            let kinds = [(INPUT_KEY, file.is_int8(&old)), (FP16_KEY, file.is_fp16(&old)), (EMBEDDING_KEY, true)];
            for (key, holds) in kinds {
                if let Some(value) = file.metadata().get(&format!("{key}{old}")).filter(|_| holds) {
                    metadata.insert(format!("{key}{new}"), value.clone());
                }
            }
        }
        metadata
    }

    /// The name that a tensor has in the file.
    fn old(&self, new: &str) -> Option<&str> {
        self.0.get(new).map(String::as_str)
    }
}

/// A layer that is to be quantized.
struct Layer {
    /// Its name in the file to be.
    name: String,
    out_features: usize,
    in_features: usize,
    /// Full names in the file that is read.
    weight: String,
    bias: Option<String>,
    /// Whether the weight is stored `[in_features, out_features]`.
    transposed: bool,
    foreign: Option<Foreign>,
    /// All tensors that become this layer, by their names in the file that is read.
    used: Vec<String>,
}

/// Which of the file's matrices become quantized layers; all of them are reported.
fn plan(
    file: &ModelFile,
    names: &Names,
    options: &CheckpointOptions,
    report: &mut QuantizeReport,
) -> Result<(Vec<Layer>, Vec<Table>)> {
    let mut chooser = CheckpointChooser::new(options);
    let candidates = candidates(file, names, &mut chooser)?;
    let matrices: Vec<Matrix> = candidates
        .iter()
        .map(|Candidate { new, shape, bias, .. }| Matrix {
            name: new,
            shape: *shape,
            bias: bias.as_ref().map(|(_, n)| *n),
        })
        .collect();
    let sizes = file.config().map(TableSizes::of).unwrap_or_default();
    let verdicts = kinds(&matrices, &sizes);
    let (mut layers, mut tables) = (Vec::new(), Vec::new());
    for (candidate, verdict) in candidates.iter().zip(verdicts) {
        let Candidate { new, old, layer, shape, bias, dtype, packed } = candidate;
        let (mut kind, mut evidence) = (verdict.kind, verdict.evidence.to_string());
        if let Some((said, word)) = chooser.said(layer, new) {
            (kind, evidence) = (said, format!("chosen by {word}"));
        }
        if shape.contains(&0) {
            (kind, evidence) = (Kind::Other, "it is empty".to_string());
        } else if *packed {
            kind = Kind::Linear; // its shape tells nothing; refused unless it is left out
        }
        let ours = layer_of(old, "weight")
            .is_some_and(|layer| file.is_int8(&layer) || file.is_fp16(&layer) || file.is_table(&layer));
        if kind == Kind::Embedding && is_float(*dtype) && !ours {
            let against = chooser.quantize.reason_against_embedding(layer, shape[0], shape[1]);
            let mut about = left(file, candidate, against, false, evidence);
            about.kind = LayerKind::Embedding;
            report.layers.push(about);
            if against.is_none() {
                let (name, weight) = (layer.clone(), old.clone());
                tables.push(Table { name, weight, rows: shape[0], dimension: shape[1] });
            }
            continue;
        }
        if let Some(layer) = layer_of(old, "weight").filter(|layer| file.is_int8(layer)) {
            file.portable(&layer)?; // what is written can be read, also what is copied
        }
        let (n, k) = if kind == Kind::Transposed { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        let against = chooser.quantize.reason_against(layer, n, k);
        let skipped = match kind {
            _ if ours => Some(Skipped::AlreadyQuantized),
            Kind::Embedding => Some(Skipped::Embedding),
            Kind::Other => Some(Skipped::NoRule),
            Kind::Transposed if !chooser.transpose(layer, new) => Some(Skipped::Transposed),
            Kind::Linear | Kind::Transposed => against,
        };
        let foreign = match (skipped, is_float(*dtype)) {
            (Some(_), true) => None,
            // What the caller leaves out, or no rule takes, stays as it is.
            (Some(_), false) => {
                report.layers.push(left(file, candidate, skipped, ours, evidence));
                continue;
            }
            (None, _) => match foreign::weight(file, old, old.strip_suffix("weight").unwrap_or(old))? {
                Weight::Plain => None,
                Weight::Foreign(foreign) => Some(foreign),
            },
        };
        if skipped.is_some() {
            report.layers.push(left(file, candidate, skipped, ours, evidence));
            continue;
        }
        if let Some((bias, length)) = bias
            && *length != n
        {
            let tensor = file.tensor(bias)?;
            return Err(wrong(bias, &tensor, &format!("floats of shape [{n}]")).in_layer(layer));
        }
        if foreign.as_ref().is_some_and(Foreign::is_int8) {
            if kind == Kind::Transposed {
                let reason = format!("it is I8 with scales for its {} rows, which are stored [in, out]", shape[0]);
                return Err(Error::ForeignWeight { name: old.clone(), reason });
            }
            evidence = match chooser.quantize.scheme() {
                LinearScheme::Int8(_) => "int8 of another tool, taken over exactly".to_string(),
                LinearScheme::Fp16 => "int8 of another tool".to_string(),
            };
        }
        let mut used = vec![old.clone()];
        used.extend(bias.iter().map(|(name, _)| name.clone()));
        used.extend(foreign.iter().flat_map(|foreign| foreign.parts.iter().cloned()));
        let mut about = left(file, candidate, None, false, evidence);
        (about.out_features, about.in_features) = (n, k);
        about.bytes_before = used.iter().filter_map(|name| Some(file.tensor(name).ok()?.len())).sum();
        report.layers.push(about);
        layers.push(Layer {
            name: layer.clone(),
            out_features: n,
            in_features: k,
            weight: old.clone(),
            bias: bias.as_ref().map(|(name, _)| name.clone()),
            transposed: kind == Kind::Transposed,
            foreign,
            used,
        });
    }
    untie(file, names, &candidates, &mut chooser, report, &mut layers)?;
    chooser.all_used()?;
    if layers.is_empty() && tables.is_empty() {
        let count = |reason| report.layers.iter().filter(|layer| layer.outcome == Err(reason)).count();
        let (already, transposed) = (count(Skipped::AlreadyQuantized), count(Skipped::Transposed));
        return Err(Error::NothingToQuantize { layers: report.layers.len(), already, transposed });
    }
    Ok((layers, tables))
}

/// What is reported of a layer that is not quantized, or not yet.
fn left(
    file: &ModelFile,
    candidate: &Candidate,
    skipped: Option<Skipped>,
    ours: bool,
    evidence: String,
) -> LayerReport {
    let bytes = match layer_of(&candidate.old, "weight") {
        Some(layer) if ours => file.layer_bytes(&layer),
        _ => [Some(&candidate.old), candidate.bias.as_ref().map(|(name, _)| name)]
            .into_iter()
            .flatten()
            .filter_map(|name| Some(file.tensor(name).ok()?.len()))
            .sum(),
    };
    LayerReport {
        name: candidate.layer.clone(),
        kind: match skipped {
            Some(Skipped::Embedding) => LayerKind::Embedding,
            _ if recurrent_module(&candidate.layer).is_some() => LayerKind::Recurrent,
            _ => LayerKind::Linear,
        },
        out_features: candidate.shape[0],
        in_features: candidate.shape[1],
        bytes_before: bytes,
        bytes_after: bytes,
        outcome: Err(skipped.unwrap_or(Skipped::AlreadyQuantized)),
        evidence: if ours { String::new() } else { evidence },
    }
}

/// A tensor of 2 dimensions.
struct Candidate {
    /// Its full name as it is to be, and as it is.
    new: String,
    old: String,
    /// The layer's name.
    layer: String,
    shape: [usize; 2],
    dtype: Dtype,
    /// Whether another tool packed several elements into each of its numbers.
    packed: bool,
    /// The bias beside it, by its name in the file, and its length.
    bias: Option<(String, usize)>,
}

/// All tensors of 2 dimensions that can be weights by their types.
fn candidates(file: &ModelFile, names: &Names, chooser: &mut CheckpointChooser) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for (new, old) in &names.0 {
        let tensor = file.tensor(old)?;
        let [rows, columns] = tensor.shape()[..] else { continue };
        let dtype = tensor.dtype();
        let packed = foreign::packed_part(file, old, dtype);
        let named = layer_of(new, packed.unwrap_or("weight"));
        // Of other tools' weights those that are named so: their scales are matrices, too.
        let table = named.as_ref().is_some_and(|_| layer_of(old, "weight").is_some_and(|layer| file.is_table(&layer)));
        if !(is_float(dtype) || table || named.is_some() && (packed.is_some() || foreign::is_known(dtype))) {
            continue;
        }
        let (layer, biases) = match &named {
            Some(layer) => (layer.to_string(), vec![part_name(layer, "bias")]),
            // `in_proj_weight` is the weight of `in_proj`.
            None => (new.strip_suffix("_weight").unwrap_or(new).to_string(), bias_names(new)),
        };
        let bias = biases.iter().find_map(|name| {
            let old = names.old(name)?;
            let tensor = file.tensor(old).ok()?;
            let [length] = tensor.shape()[..] else { return None };
            is_float(tensor.dtype()).then(|| (old.to_string(), length))
        });
        // Names without `weight` say nothing of a bias, unless the caller says that they are layers.
        let bias = bias.filter(|_| named.is_some() || chooser.is_named(&layer, new));
        let (new, old) = (new.clone(), old.clone());
        found.push(Candidate { new, old, layer, shape: [rows, columns], dtype, packed: packed.is_some(), bias });
    }
    Ok(found)
}

/// What the bias of a weight may be called whose name doesn't end in `.weight`.
fn bias_names(full: &str) -> Vec<String> {
    let (before, last) = full.rsplit_once('.').map_or(("", full), |(before, last)| (before, last));
    let replaced = last.contains("weight").then(|| join_name(before, last.replace("weight", "bias")));
    replaced.into_iter().chain([join_name(full, "bias"), format!("{full}_bias")]).collect()
}

/// Layers whose weight is another tensor's: a head that is tied to the embedding, given a quantized weight of its own.
fn untie(
    file: &ModelFile,
    names: &Names,
    candidates: &[Candidate],
    chooser: &mut CheckpointChooser,
    report: &mut QuantizeReport,
    layers: &mut Vec<Layer>,
) -> Result<()> {
    let mut ties = chooser.ties();
    if ties.is_empty() && names.old("lm_head.weight").is_none() && is_tied_by_config(file) {
        // The table of the vocabulary, if there is one.
        let vocabulary = file.config().and_then(|config| config["vocab_size"].as_u64());
        let tables: Vec<&Candidate> = candidates
            .iter()
            .filter(|candidate| Some(candidate.shape[0] as u64) == vocabulary && candidate.bias.is_none())
            .collect();
        if let [table] = tables[..] {
            ties.push(("lm_head".to_string(), table.new.clone()));
        }
    }
    for (layer, pattern) in ties {
        let of: Vec<&Candidate> =
            candidates.iter().filter(|c| chooser.tie_matches(&pattern, &c.layer) || c.new == pattern).collect();
        let table = match of[..] {
            [] => return Err(Error::UnusedPattern { pattern }),
            [table] => table,
            [..] => {
                let found = of.iter().map(|table| table.new.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Error::AmbiguousPattern { pattern, found });
            }
        };
        if names.old(&join_name(&layer, "weight")).is_some() {
            return Err(Error::NameTaken { name: join_name(&layer, "weight"), layer });
        }
        if !is_float(table.dtype) {
            return Err(wrong(&table.old, &file.tensor(&table.old)?, "F32, F64, F16 or BF16"));
        }
        let [n, k] = table.shape;
        let against = chooser.quantize.reason_against(&layer, n, k);
        let evidence = match against {
            None => format!("tied to `{}`, and given a weight of its own", table.new),
            Some(_) => format!("tied to `{}`", table.new),
        };
        report.layers.push(LayerReport {
            name: layer.clone(),
            kind: LayerKind::Linear,
            out_features: n,
            in_features: k,
            bytes_before: 0,
            bytes_after: 0,
            outcome: Err(against.unwrap_or(Skipped::AlreadyQuantized)),
            evidence,
        });
        if against.is_some() {
            continue;
        }
        let bias = names.old(&join_name(&layer, "bias")).map(str::to_string);
        let fits = |name: &String| file.tensor(name).is_ok_and(|bias| is_float(bias.dtype()) && bias.shape() == [n]);
        let bias = bias.filter(fits);
        let weight = table.old.clone();
        let used = bias.iter().cloned().collect(); // the table stays
        layers.push(Layer {
            name: layer,
            out_features: n,
            in_features: k,
            weight,
            bias,
            transposed: false,
            foreign: None,
            used,
        });
    }
    Ok(())
}

/// Whether the config says that the head of a language model has the embedding's weight.
fn is_tied_by_config(file: &ModelFile) -> bool {
    let Some(config) = file.config() else { return false };
    let with_head = |name: &serde_json::Value| {
        name.as_str().is_some_and(|name| name.contains("ForCausalLM") || name.contains("LMHead"))
    };
    config["tie_word_embeddings"] == true
        && config["architectures"].as_array().is_some_and(|all| all.iter().any(with_head))
}

/// Checks that no part of a layer takes the name of a tensor that stays.
fn check_names(names: &Names, layers: &[Layer]) -> Result<()> {
    let used: BTreeSet<&str> = layers.iter().flat_map(|layer| layer.used.iter().map(String::as_str)).collect();
    for layer in layers {
        for part in ["weight", "scale", "zero_point", "col_offsets", "bias"] {
            let name = part_name(&layer.name, part);
            if names.old(&name).is_some_and(|old| !used.contains(old)) {
                return Err(Error::NameTaken { layer: layer.name.clone(), name });
            }
        }
    }
    Ok(())
}

impl Layer {
    /// The tensors that it becomes; what the metadata says of it is added there.
    fn tensors(
        &self,
        file: &ModelFile,
        scheme: LinearScheme,
        metadata: &mut BTreeMap<String, String>,
    ) -> Result<Vec<(String, Dtype, Vec<usize>)>> {
        let Self { name, out_features: n, in_features: k, .. } = self;
        let (elements, has_bias) = (n.saturating_mul(*k), self.bias.is_some());
        let in_layer = |e: Error| e.in_layer(name);
        match (scheme, &self.foreign) {
            (LinearScheme::Int8(scheme), Some(foreign)) if foreign.is_int8() => {
                check_int8_shape("weight", elements, *n, *k).map_err(in_layer)?;
                note_input(metadata, name, scheme.inputs);
                Ok(quantized_tensors(name, *n, *k, foreign.channels(file)?, has_bias))
            }
            (LinearScheme::Int8(scheme), _) => {
                check_int8_shape("weight", elements, *n, *k).map_err(in_layer)?;
                note_input(metadata, name, scheme.inputs);
                Ok(quantized_tensors(name, *n, *k, scheme.weights.channels(*n), has_bias))
            }
            (LinearScheme::Fp16, _) => {
                check_fp16_shape("weight", elements, *n, *k).map_err(in_layer)?;
                metadata.insert(format!("{FP16_KEY}{name}"), "1".to_string());
                Ok(fp16_tensors(name, *n, *k, has_bias))
            }
        }
    }

    /// What quantizing did to the weight, and the bytes of the layer's tensors.
    fn quantized(&self, file: &ModelFile, scheme: LinearScheme) -> Result<(WeightReport, Vec<Cow<'static, [u8]>>)> {
        let bias = match &self.bias {
            Some(name) => Some(file.tensor_f32(name)?.1),
            None => None,
        };
        let (n, k) = (self.out_features, self.in_features);
        if let (Some(foreign), LinearScheme::Int8(scheme)) = (&self.foreign, scheme)
            && let Some(weight) = foreign.int8(file, &self.weight)?
        {
            let about = WeightReport::unchanged(&weight).with_input(scheme.inputs);
            return Ok((about, quantized_bytes(weight, bias.as_deref())?));
        }
        let weight = match &self.foreign {
            Some(foreign) => foreign.floats(file, &self.weight)?,
            None => file.tensor_f32(&self.weight)?.1,
        };
        let weight = if self.transposed { transposed(&weight, k, n)? } else { weight };
        let (about, quantized) = quantize_linear(&weight, n, k, scheme)?;
        Ok(match quantized {
            Quantized::Int8(weight, _) => (about, quantized_bytes(weight, bias.as_deref())?),
            Quantized::Fp16(packed) => (about, fp16_bytes(&packed.unpack()?, bias.as_deref())?),
        })
    }
}

/// An embedding that is to be quantized.
struct Table {
    /// Its name in the file to be.
    name: String,
    /// The full name of its weight in the file that is read.
    weight: String,
    rows: usize,
    dimension: usize,
}

impl Table {
    /// The tensor that it becomes; what the metadata says of it is added there.
    fn tensor(
        &self,
        format: EmbeddingFormat,
        metadata: &mut BTreeMap<String, String>,
    ) -> Result<(String, Dtype, Vec<usize>)> {
        let bytes = format.row_bytes(self.dimension)?;
        let (dtype, columns) = match format {
            EmbeddingFormat::Fp32 => (Dtype::F32, self.dimension),
            EmbeddingFormat::Fp16 => (Dtype::F16, self.dimension),
            quantized => {
                metadata.insert(format!("{EMBEDDING_KEY}{}", self.name), quantized.to_string());
                (Dtype::U8, bytes)
            }
        };
        Ok((join_name(&self.name, "weight"), dtype, vec![self.rows, columns]))
    }

    /// Packs the rows some at a time, and tells what that did to them.
    fn pack(
        &self,
        file: &ModelFile,
        format: EmbeddingFormat,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<WeightReport> {
        let tensor = file.tensor(&self.weight)?;
        let of_row = tensor.len() / self.rows.max(1);
        let piece = rows_at_once(self.dimension);
        let (mut errors, mut bytes) = (RowErrors::default(), zeroed(piece.min(self.rows) * of_row)?);
        for start in (0..self.rows).step_by(piece) {
            let rows = (self.rows - start).min(piece);
            let bytes = &mut bytes[..rows * of_row];
            tensor.read_into(start * of_row, bytes)?;
            let values = floats_of(&self.weight, &tensor, bytes)?;
            let packed = pack_embedding(&values, rows, self.dimension, format);
            let packed = packed.map_err(|e| at_offset(e, start * self.dimension).in_layer(&self.name))?;
            errors.add_rounded(&values, &packed.unpack()?, self.dimension);
            write(packed.bytes())?;
        }
        Ok(errors.report())
    }
}

/// A matrix of `rows` by `columns` the other way round.
///
/// # Errors
/// [`Error::OutOfMemory`].
fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Result<Vec<f32>> {
    let mut result = zeroed(matrix.len())?;
    for (column, to) in result.chunks_mut(rows.max(1)).enumerate() {
        to.iter_mut().enumerate().for_each(|(row, value)| *value = matrix[row * columns + column]);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_looked_for_by_the_weights_own_name() {
        assert_eq!(bias_names("a.in_proj_weight")[0], "a.in_proj_bias");
        assert_eq!(bias_names("lstm.weight_ih_l0")[0], "lstm.bias_ih_l0");
        assert_eq!(bias_names("enc_w"), ["enc_w.bias", "enc_w_bias"]);
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3).unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
