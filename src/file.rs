//! Models in safetensors files: plain int8 weights under plain names, never packed ones.
//!
//! A quantized layer `x` is `x.weight` (I8, \[out_features, in_features\]), `x.scale` (F32, \[1\], or \[out_features\]
//! where each output has its own), `x.zero_point` (I32, as many), `x.col_offsets` (I32, \[out_features\]) and, if it has
//! one, `x.bias` (F32, \[out_features\]). All else is as in an fp32 checkpoint. The metadata has `fbgemm_format`, the
//! layout's version, and, where a layer's input is not quantized per tensor, `input:x`, an `InputScheme` in words.
//! A layer with its weight in fp16 is `x.weight` (F16) and `x.bias` (F32), as in an fp16 checkpoint, and `fp16:x` = `1`
//! in the metadata. Version 2 has more than one scale, or such an input or weight; a file without any of them is
//! written as version 1.

use crate::model::{Chooser, Skipped, join_name};
use crate::{
    Error, HalfLinear, InputScheme, LayerReport, Linear, LinearModules, PortableLinear, QuantizeOptions,
    QuantizeReport, QuantizedLinear, QuantizedWeight, Result, WeightReport, cpu_support, quantize_weight_as,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo, TensorView};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The newest layout that this version writes and reads.
const FORMAT: u32 = 2;
/// Before a layer's name: its input scheme's key in the metadata.
const INPUT_KEY: &str = "input:";
/// Before a layer's name: the key of one with its weight in fp16.
const FP16_KEY: &str = "fp16:";
/// Its place in the file's metadata.
const FORMAT_KEY: &str = "fbgemm_format";

/// A safetensors file's bytes, parsed: a quantized model, or an fp32 checkpoint.
///
/// The bytes may be a memory map or a read file; tensors are read from them when asked for. Nothing in a file is
/// trusted: what is wrong with it is an error that names the layer.
pub struct ModelFile<'a> {
    tensors: SafeTensors<'a>,
    metadata: BTreeMap<String, String>,
    /// Names of the quantized layers, in order.
    quantized: Vec<String>,
}

impl<'a> ModelFile<'a> {
    /// Parses a file's bytes: the header alone, and that all of its quantized layers are complete and of the right
    /// types and shapes.
    ///
    /// # Errors
    /// [`Error::InvalidFile`]; [`Error::NewerFormat`]; [`Error::InLayer`] around [`Error::MissingTensor`] and
    /// [`Error::WrongTensor`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidFile { reason };
        check_header(bytes).map_err(invalid)?;
        let (_, about) = SafeTensors::read_metadata(bytes).map_err(|e| invalid(e.to_string()))?;
        let metadata: BTreeMap<_, _> = about.metadata().clone().unwrap_or_default().into_iter().collect();
        let has_format = match metadata.get(FORMAT_KEY) {
            None => false,
            Some(version) if version.parse().is_ok_and(|version| (1..=FORMAT).contains(&version)) => true,
            Some(version) => return Err(Error::NewerFormat { given: version.clone(), known: FORMAT }),
        };
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| invalid(e.to_string()))?;
        let mut file = Self { tensors, metadata, quantized: Vec::new() };
        if has_format {
            file.quantized = file.find_quantized()?;
        }
        Ok(file)
    }

    /// Names of the quantized layers, in order.
    pub fn quantized_layers(&self) -> impl ExactSizeIterator<Item = &str> {
        self.quantized.iter().map(String::as_str)
    }

    /// The file's metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of all tensors, in order.
    pub fn tensor_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.names();
        names.sort_unstable();
        names
    }

    /// A tensor's type (safetensors' word for it), shape and size in bytes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn describe(&self, name: &str) -> Result<(String, Vec<usize>, usize)> {
        let tensor = self.tensor(name)?;
        Ok((tensor.dtype().to_string(), tensor.shape().to_vec(), tensor.data().len()))
    }

    /// A float tensor's shape and values, as `f32`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::WrongTensor`] for other types than F32, F64, F16 and BF16.
    pub fn tensor_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self.tensor(name)?;
        Ok((tensor.shape().to_vec(), floats(name, &tensor)?))
    }

    /// A quantized layer in its stored form.
    ///
    /// # Errors
    /// [`Error::InLayer`] around what is wrong with it, or [`Error::MissingTensor`].
    pub fn portable(&self, name: &str) -> Result<PortableLinear> {
        self.read_portable(name).map_err(|e| e.in_layer(name))
    }

    /// A linear layer, quantized (and packed for this CPU) or in fp32.
    ///
    /// # Errors
    /// [`Error::InLayer`] around what is wrong with it, [`Error::MissingTensor`], or what packing reports.
    pub fn linear(&self, name: &str) -> Result<Linear> {
        let read = || {
            if self.is_quantized(name) {
                return self.read_portable(name)?.pack().map(Linear::Int8);
            }
            let (out_features, in_features) = self.shape(name)?;
            let (_, weight) = self.tensor_f32(&join_name(name, "weight"))?;
            if self.is_half(name) {
                let bias = self.bias(name)?;
                return HalfLinear::new(&weight, bias.as_deref(), out_features, in_features).map(Linear::Half);
            }
            Linear::new(weight, self.bias(name)?, out_features, in_features)
        };
        read().map_err(|e: Error| e.in_layer(name))
    }

    /// Every quantized layer by name, packed for this CPU by `threads` threads (at least one; the calling one is
    /// among them).
    ///
    /// # Errors
    /// The first in the order of names, as [`linear`](Self::linear).
    pub fn load_quantized(&self, threads: usize) -> Result<BTreeMap<String, QuantizedLinear>> {
        let layers = in_parallel(&self.quantized, threads, |name| {
            self.read_portable(name).and_then(PortableLinear::pack).map_err(|e| e.in_layer(name))
        })?;
        Ok(self.quantized.iter().cloned().zip(layers).collect())
    }

    /// The tensors that can be linear layers' weights, by the layers' names, in order.
    fn candidates(&self) -> Vec<&str> {
        let weights = self.tensors.iter().filter(|(_, tensor)| tensor.shape().len() == 2);
        let layers = weights.filter_map(|(full, tensor)| {
            let name = layer_of(full, "weight")?;
            (is_float(tensor.dtype()) || self.is_quantized(name)).then_some(name)
        });
        let mut names: Vec<&str> = layers.collect();
        names.sort_unstable();
        names
    }

    /// A linear layer's out_features and in_features.
    fn shape(&self, name: &str) -> Result<(usize, usize)> {
        let full = join_name(name, "weight");
        let weight = self.tensor(&full)?;
        match weight.shape()[..] {
            [out_features, in_features] => Ok((out_features, in_features)),
            _ => Err(wrong(&full, &weight, "2 dimensions")),
        }
    }

    /// How many bytes of the file a linear layer takes.
    fn layer_bytes(&self, name: &str) -> usize {
        let parts = ["weight", "scale", "zero_point", "col_offsets", "bias"];
        parts.iter().filter_map(|part| Some(self.tensors.tensor(&join_name(name, part)).ok()?.data().len())).sum()
    }

    /// Names of the layers with their weights in fp16, in order.
    pub fn half_layers(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().filter_map(|key| key.strip_prefix(FP16_KEY))
    }

    fn is_half(&self, name: &str) -> bool {
        self.metadata.contains_key(&format!("{FP16_KEY}{name}"))
    }

    fn is_quantized(&self, name: &str) -> bool {
        self.quantized.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'a>> {
        self.tensors.tensor(name).map_err(|_| Error::MissingTensor { name: name.to_string() })
    }

    /// The quantized layers' names; an error where one is incomplete.
    fn find_quantized(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for (full, tensor) in self.tensors.iter() {
            match (layer_of(full, "weight"), layer_of(full, "col_offsets")) {
                (Some(name), _) if tensor.dtype() == Dtype::I8 => names.push(name.to_string()),
                (_, Some(name)) => names.push(name.to_string()),
                _ => {}
            }
        }
        names.sort_unstable();
        names.dedup();
        for name in &names {
            self.check_shapes(name).map_err(|e| e.in_layer(name))?;
        }
        Ok(names)
    }

    fn check_shapes(&self, name: &str) -> Result<[usize; 2]> {
        let (n, k) = self.shape(name)?;
        // One for all outputs, or each output's own.
        let channels = if self.tensor(&join_name(name, "scale"))?.shape() == [n] { n } else { 1 };
        let expected = [("weight", Dtype::I8, vec![n, k]), ("scale", Dtype::F32, vec![channels])];
        let more = [("zero_point", Dtype::I32, vec![channels]), ("col_offsets", Dtype::I32, vec![n])];
        for (part, dtype, shape) in expected.into_iter().chain(more) {
            self.expect(&join_name(name, part), dtype, &shape)?;
        }
        let bias = join_name(name, "bias");
        if self.tensors.tensor(&bias).is_ok() {
            self.expect(&bias, Dtype::F32, &[n])?;
        }
        Ok([n, k])
    }

    fn expect(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<TensorView<'a>> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() == dtype && tensor.shape() == shape {
            return Ok(tensor);
        }
        Err(wrong(name, &tensor, &format!("{dtype} {shape:?}")))
    }

    fn read_portable(&self, name: &str) -> Result<PortableLinear> {
        let [n, k] = self.check_shapes(name)?;
        let part = |part: &str| self.tensor(&join_name(name, part));
        let scales = numbers(part("scale")?.data(), f32::from_le_bytes);
        let zero_points = numbers(part("zero_point")?.data(), i32::from_le_bytes);
        let col_offsets = numbers(part("col_offsets")?.data(), i32::from_le_bytes);
        let data = numbers(part("weight")?.data(), i8::from_le_bytes);
        let weight = QuantizedWeight::from_stored(data, col_offsets, scales, zero_points, n, k)?;
        let input = match self.metadata.get(&format!("{INPUT_KEY}{name}")) {
            Some(scheme) => scheme.parse()?,
            None => InputScheme::new(),
        };
        Ok(PortableLinear::new(weight, self.bias(name)?)?.with_input(input))
    }

    fn bias(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let full = join_name(name, "bias");
        let Ok(tensor) = self.tensors.tensor(&full) else { return Ok(None) };
        let (out_features, _) = self.shape(name)?;
        match tensor.shape() {
            [length] if *length == out_features => floats(&full, &tensor).map(Some),
            _ => Err(wrong(&full, &tensor, &format!("floats of shape [{out_features}]"))),
        }
    }
}

/// Checks what the safetensors parser lets pass: a name given twice, of which it keeps the last, and a tensor beyond
/// the file, where its sums may overflow.
fn check_header(bytes: &[u8]) -> std::result::Result<(), String> {
    let (length, rest) = bytes.split_first_chunk().ok_or("it has less than 8 bytes")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|e| e.to_string())?;
    let header =
        rest.get(..length).ok_or_else(|| format!("its header has {length} bytes, the file {}", bytes.len()))?;
    let Header { end } = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    match (rest.len() - length) as u64 {
        data if end <= data => Ok(()),
        data => Err(format!("its tensors take {end} bytes, of which the file has {data}")),
    }
}

/// A file's header, of which only that its names are unique and where its tensors end matters here.
struct Header {
    end: u64,
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

        #[derive(serde::Deserialize)]
        struct Tensor {
            data_offsets: (u64, u64),
        }

        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a header that is a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let (mut seen, mut end) = (HashSet::new(), 0);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        end = end.max(map.next_value::<Tensor>()?.data_offsets.1);
                    }
                    if let Some(twice) = seen.replace(name) {
                        return Err(A::Error::custom(format!("it has the name {twice:?} twice")));
                    }
                }
                Ok(Header { end })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The layer whose part of this name a tensor is.
fn layer_of<'a>(full: &'a str, part: &str) -> Option<&'a str> {
    if full == part { Some("") } else { full.strip_suffix(part)?.strip_suffix('.') }
}

fn wrong(name: &str, tensor: &TensorView, expected: &str) -> Error {
    let given = format!("{} {:?}", tensor.dtype(), tensor.shape());
    Error::WrongTensor { name: name.to_string(), given, expected: expected.to_string() }
}

fn le_bytes<T: Copy, const SIZE: usize>(numbers: &[T], write: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
    numbers.iter().flat_map(|&number| write(number)).collect()
}

fn numbers<T, const SIZE: usize>(bytes: &[u8], read: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<SIZE>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

fn floats(name: &str, tensor: &TensorView) -> Result<Vec<f32>> {
    let bytes = tensor.data();
    Ok(match tensor.dtype() {
        Dtype::F32 => numbers(bytes, f32::from_le_bytes),
        Dtype::F64 => numbers(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::F16 => numbers(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => numbers(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        _ => return Err(wrong(name, tensor, "F32, F64, F16 or BF16")),
    })
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16)
}

/// `work` on each item by so many threads, this one among them; the first error in the items' order.
fn in_parallel<I: Sync, T: Send>(items: &[I], threads: usize, work: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<T>>>> = Mutex::new(items.iter().map(|_| None).collect());
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(item);
            done.lock().unwrap_or_else(|e| e.into_inner())[index] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, items.len().max(1)) {
            scope.spawn(run);
        }
        run();
    });
    let done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.into_iter().map(|result| result.expect("every item was taken by a thread, and all threads ended")).collect()
}

/// Puts a file's layers into a model: every [`Linear`] of the model is replaced by the file's layer of the same name,
/// quantized ones packed for this CPU by `threads` threads. On an error the model is as it was.
///
/// # Errors
/// [`Error::InLayer`] around what is wrong with a layer, [`Error::ShapeMismatch`] among it; [`Error::UnexpectedLayer`]
/// where the file has a quantized layer that the model has not; [`Error::DuplicateName`] where two layers of the model
/// have one name.
pub fn load_linear_modules(model: &mut (impl LinearModules + ?Sized), file: &ModelFile, threads: usize) -> Result<()> {
    let mut wanted = Vec::new();
    let mut known = BTreeSet::new();
    let mut duplicate = None;
    model.visit_linear("", &mut |name, layer| {
        if !known.insert(name.to_string()) {
            duplicate = Some(name.to_string());
        }
        wanted.push((name.to_string(), layer.out_features(), layer.in_features()));
    });
    if let Some(name) = duplicate {
        return Err(Error::DuplicateName { name });
    }
    if let Some(name) = file.quantized.iter().find(|&name| !known.contains(name)) {
        return Err(Error::UnexpectedLayer { name: name.clone() });
    }
    let layers = in_parallel(&wanted, threads, |&(ref name, model_out, model_in)| {
        let (file_out, file_in) = file.shape(name).map_err(|e| e.in_layer(name))?;
        if (file_out, file_in) != (model_out, model_in) {
            return Err(Error::ShapeMismatch { file_out, file_in, model_out, model_in }.in_layer(name));
        }
        file.linear(name)
    })?;
    let mut layers = layers.into_iter();
    model.visit_linear_mut("", &mut |_, layer| {
        if let Some(loaded) = layers.next() {
            *layer = loaded;
        }
    });
    Ok(())
}

/// A tensor to store beside the linear layers: a norm, an embedding.
#[derive(Clone, Copy, Debug)]
pub struct PlainTensor<'a> {
    /// Its full name.
    pub name: &'a str,
    /// Its shape, row-major.
    pub shape: &'a [usize],
    /// Its values.
    pub values: &'a [f32],
}

/// Stores a model's linear layers, as they are (quantized or fp32), and `others` beside them. The file appears whole
/// or not at all: it is written under another name in the same folder and renamed.
///
/// # Errors
/// [`Error::Io`]; [`Error::WrongLength`] for a plain tensor whose values don't fill its shape;
/// [`Error::DuplicateName`] where two tensors have one name; [`Error::InLayer`] around [`Error::NotLoaded`].
pub fn save_linear_modules(
    model: &(impl LinearModules + ?Sized),
    others: &[PlainTensor],
    path: impl AsRef<Path>,
) -> Result<()> {
    let mut parts = Vec::new();
    for &PlainTensor { name, shape, values } in others {
        let expected = shape.iter().product();
        if values.len() != expected {
            return Err(Error::WrongLength { what: "tensor", given: values.len(), expected });
        }
        parts.push(Part::new(vec![(name.to_string(), Dtype::F32, shape.to_vec())], move || {
            Ok(vec![le_bytes(values, f32::to_le_bytes).into()])
        }));
    }
    let (mut unloaded, mut metadata) = (None, BTreeMap::new());
    model.visit_linear("", &mut |name, layer| {
        match layer {
            Linear::Int8(layer) => note_input(&mut metadata, name, layer.input_scheme()),
            Linear::Half(_) => drop(metadata.insert(format!("{FP16_KEY}{name}"), "1".to_string())),
            _ => {}
        }
        let (n, k, bias) = (layer.out_features(), layer.in_features(), layer.bias());
        parts.push(match layer {
            Linear::Float(layer) => {
                let mut tensors = vec![(join_name(name, "weight"), Dtype::F32, vec![n, k])];
                tensors.extend(bias.map(|_| (join_name(name, "bias"), Dtype::F32, vec![n])));
                Part::new(tensors, || {
                    let values = std::iter::once(layer.weight()).chain(layer.bias());
                    Ok(values.map(|values| le_bytes(values, f32::to_le_bytes).into()).collect())
                })
            }
            Linear::Int8(layer) => {
                Part::new(quantized_tensors(name, n, k, layer.scales().len(), bias.is_some()), || {
                    let (weight, bias) = layer.to_portable()?.into_weight_and_bias();
                    Ok(quantized_bytes(weight, bias.as_deref()))
                })
            }
            Linear::Half(layer) => {
                Part::new(half_tensors(name, n, k, bias.is_some()), || Ok(half_bytes(&layer.weight()?, layer.bias())))
            }
            Linear::Unloaded { .. } => return unloaded = unloaded.take().or(Some(name.to_string())),
        });
    });
    if let Some(name) = unloaded {
        return Err(Error::NotLoaded.in_layer(&name));
    }
    write(parts, metadata, path.as_ref(), &mut |_| {})
}

/// Writes down how a layer's input is quantized, unless it is the default.
fn note_input(metadata: &mut BTreeMap<String, String>, name: &str, scheme: InputScheme) {
    if scheme != InputScheme::new() {
        metadata.insert(format!("{INPUT_KEY}{name}"), scheme.to_string());
    }
}

/// Some tensors of a file to be, and how to get their bytes when it is their turn.
struct Part<'a> {
    tensors: Vec<(String, Dtype, Vec<usize>)>,
    bytes: Bytes<'a>,
}

/// One item for each of a part's tensors.
type Bytes<'a> = Box<dyn FnOnce() -> Result<Vec<Cow<'a, [u8]>>> + 'a>;

impl<'a> Part<'a> {
    fn new(tensors: Vec<(String, Dtype, Vec<usize>)>, bytes: impl FnOnce() -> Result<Vec<Cow<'a, [u8]>>> + 'a) -> Self {
        Self { tensors, bytes: Box::new(bytes) }
    }
}

/// The tensors of a layer in fp16, and, in the same order, their bytes.
fn half_tensors(name: &str, n: usize, k: usize, has_bias: bool) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut tensors = vec![(join_name(name, "weight"), Dtype::F16, vec![n, k])];
    tensors.extend(has_bias.then(|| (join_name(name, "bias"), Dtype::F32, vec![n])));
    tensors
}

fn half_bytes<'a>(weight: &[f32], bias: Option<&[f32]>) -> Vec<Cow<'a, [u8]>> {
    let mut bytes: Vec<Cow<[u8]>> = vec![le_bytes(weight, |w| half::f16::from_f32(w).to_le_bytes()).into()];
    bytes.extend(bias.map(|bias| Cow::from(le_bytes(bias, f32::to_le_bytes))));
    bytes
}

/// The tensors of a quantized layer, and, in the same order, their bytes.
fn quantized_tensors(
    name: &str,
    n: usize,
    k: usize,
    channels: usize,
    has_bias: bool,
) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut tensors = vec![
        (join_name(name, "weight"), Dtype::I8, vec![n, k]),
        (join_name(name, "scale"), Dtype::F32, vec![channels]),
        (join_name(name, "zero_point"), Dtype::I32, vec![channels]),
        (join_name(name, "col_offsets"), Dtype::I32, vec![n]),
    ];
    tensors.extend(has_bias.then(|| (join_name(name, "bias"), Dtype::F32, vec![n])));
    tensors
}

fn quantized_bytes<'a>(weight: QuantizedWeight, bias: Option<&[f32]>) -> Vec<Cow<'a, [u8]>> {
    let (data, about) = weight.into_parts();
    // In place: the standard library collects a vector's elements into its own memory where their sizes agree.
    let data: Vec<u8> = data.into_iter().map(|q| q as u8).collect();
    let mut bytes: Vec<Cow<[u8]>> = vec![
        data.into(),
        le_bytes(&about.scales, f32::to_le_bytes).into(),
        le_bytes(&about.zero_points, i32::to_le_bytes).into(),
        le_bytes(&about.col_offsets, i32::to_le_bytes).into(),
    ];
    bytes.extend(bias.map(|bias| Cow::from(le_bytes(bias, f32::to_le_bytes))));
    bytes
}

/// Writes a file part by part under another name in the same folder, and renames it when it is whole; `done` is told
/// the number of parts written.
fn write(
    parts: Vec<Part>,
    mut metadata: BTreeMap<String, String>,
    path: &Path,
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let mut order: Vec<(Dtype, &str, usize)> = Vec::new();
    for (name, dtype, shape) in parts.iter().flat_map(|part| &part.tensors) {
        order.push((*dtype, name, shape.iter().product::<usize>() * dtype.bitsize() / 8));
    }
    // As the safetensors library orders them, so that each is aligned: widest types first, then by name.
    order.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let mut ends = BTreeMap::new();
    let mut end = 0;
    for &(_, name, size) in &order {
        end += size;
        if ends.insert(name.to_string(), (end - size, end)).is_some() {
            return Err(Error::DuplicateName { name: name.to_string() });
        }
    }
    let channels = |(name, _, shape): &(String, Dtype, Vec<usize>)| layer_of(name, "scale").is_some() && shape != &[1];
    let of_version_2 = metadata.keys().any(|key| key.starts_with(INPUT_KEY) || key.starts_with(FP16_KEY))
        || parts.iter().any(|part| part.tensors[0].1 == Dtype::I8 && part.tensors.iter().any(channels));
    let version = if of_version_2 { FORMAT } else { 1 };
    metadata.insert(FORMAT_KEY.to_string(), version.to_string());
    let header = header(&parts, &ends, &metadata)?;

    let temporary = Temporary::beside(path)?;
    let io = |e: std::io::Error| Error::Io { path: path.display().to_string(), reason: e.to_string() };
    let mut file = &temporary.file;
    file.write_all(&header).map_err(io)?;
    for (i, part) in parts.into_iter().enumerate() {
        let bytes = (part.bytes)()?;
        for ((name, ..), bytes) in part.tensors.iter().zip(bytes) {
            let (start, end) = ends[name];
            assert_eq!(bytes.len(), end - start, "a part gives the bytes that its tensors' shapes say");
            file.seek(SeekFrom::Start((header.len() + start) as u64)).map_err(io)?;
            file.write_all(&bytes).map_err(io)?;
        }
        done(i + 1);
    }
    temporary.persist(path)
}

/// The file's first bytes: the header's length and the header, padded to a multiple of 8.
fn header(
    parts: &[Part],
    ends: &BTreeMap<String, (usize, usize)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let invalid = |e: serde_json::Error| Error::InvalidFile { reason: e.to_string() };
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_string(), serde_json::to_value(metadata).map_err(invalid)?);
    for (name, dtype, shape) in parts.iter().flat_map(|part| &part.tensors) {
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: ends[name] };
        header.insert(name.clone(), serde_json::to_value(info).map_err(invalid)?);
    }
    let mut json = serde_json::to_vec(&header).map_err(invalid)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// A file under a name of its own beside the one it is to replace; removed unless it gets there.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let io = |e: String| Error::Io { path: path.display().to_string(), reason: e };
        let name = path.file_name().ok_or_else(|| io("is not the path of a file".to_string()))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!(".{}.{}-{count}.tmp", name.to_string_lossy(), std::process::id());
        let temporary = path.with_file_name(unique);
        let file = File::create_new(&temporary).map_err(|e| io(e.to_string()))?;
        Ok(Self { file, path: temporary })
    }

    /// On the disk before it takes the name: a crash leaves the old file or the new one.
    fn persist(self, path: &Path) -> Result<()> {
        let renamed = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, path));
        renamed.map_err(|e| Error::Io { path: path.display().to_string(), reason: e.to_string() })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed files are no longer there; of a failed one nothing must stay, and there is no one to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Quantizes a checkpoint's linear layers and stores all of it at `path`, layer by layer: no more than one layer is in
/// memory beside the input's bytes, which may be a memory map. Without a `path` (a dry run) it only reports.
///
/// A layer is a tensor named `<layer>.weight` with 2 dimensions in F32, F64, F16 or BF16 that the options choose.
/// Embeddings, which a checkpoint doesn't tell from linear layers, are known by their names (last part `wte`, `wpe`,
/// `emb`, `shared`, `relative_attention_bias` or with `embed` in it) and stay as they are, unless an `include` pattern without `*` and `?` names them. All other
/// tensors and the metadata are copied; a quantized layer's bias becomes F32. `progress` is told how many of how many
/// layers and other tensors are done.
///
/// # Errors
/// As [`quantize_linear_modules`](crate::quantize_linear_modules), with the file's candidates for layers;
/// [`Error::InLayer`] around [`Error::WrongTensor`] for a bias that doesn't fit; [`Error::DuplicateName`];
/// [`Error::Io`].
pub fn quantize_checkpoint(
    file: &ModelFile,
    options: &QuantizeOptions,
    path: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<QuantizeReport> {
    cpu_support()?;
    let (mut chosen, mut report) = (BTreeSet::new(), QuantizeReport::new(options));
    let mut chooser = Chooser::new(options);
    for name in file.candidates() {
        let (n, k) = file.shape(name)?;
        let mut against = chooser.reason_against(name, n, k);
        if against.is_none() && is_embedding(name) && !options.names_exactly(name) {
            against = Some(Skipped::Embedding);
        } else if file.is_quantized(name) || file.is_half(name) {
            against = Some(Skipped::AlreadyQuantized);
        }
        if against.is_none() {
            chosen.insert(name);
        }
        let bytes = file.layer_bytes(name);
        report.layers.push(LayerReport {
            name: name.to_string(),
            out_features: n,
            in_features: k,
            bytes_before: bytes,
            bytes_after: bytes,
            outcome: Err(against.unwrap_or(Skipped::AlreadyQuantized)),
        });
    }
    chooser.all_used()?;
    if chosen.is_empty() {
        return Err(Error::NothingToQuantize { layers: report.layers.len() });
    }

    let by_name = report.layers.iter_mut().map(|layer| (layer.name.clone(), layer));
    let (scheme, mut metadata) = (options.weights, file.metadata.clone());
    let reports = RefCell::new(by_name.collect::<BTreeMap<String, &mut LayerReport>>());
    let mut parts = Vec::new();
    for full in file.tensor_names() {
        let tensor = file.tensor(full)?;
        if let Some(name) = layer_of(full, "weight").filter(|name| chosen.contains(name)) {
            let ((n, k), bias) = (file.shape(name)?, file.bias(name).map_err(|e| e.in_layer(name))?);
            crate::weight::check_length("weight", tensor.shape().iter().product(), n, k)
                .map_err(|e| e.in_layer(name))?;
            let (tensors, fp16) = if options.fp16 {
                metadata.insert(format!("{FP16_KEY}{name}"), "1".to_string());
                (half_tensors(name, n, k, bias.is_some()), true)
            } else {
                note_input(&mut metadata, name, options.input);
                (quantized_tensors(name, n, k, scheme.channels(n), bias.is_some()), false)
            };
            let reports = &reports;
            parts.push(Part::new(tensors, move || {
                let (_, weight) = file.tensor_f32(full)?;
                if fp16 {
                    // Rounded by FBGEMM itself, as the layer will be.
                    let half = HalfLinear::new(&weight, None, n, k).map_err(|e| e.in_layer(name))?;
                    let rounded = half.weight()?;
                    let bytes = half_bytes(&rounded, bias.as_deref());
                    if let Some(layer) = reports.borrow_mut().get_mut(name) {
                        layer.bytes_after = bytes.iter().map(|bytes| bytes.len()).sum();
                        layer.outcome = Ok(WeightReport::of_rounded(&weight, &rounded));
                    }
                    return Ok(bytes);
                }
                let quantized = quantize_weight_as(&weight, n, k, scheme).map_err(|e| e.in_layer(name))?;
                let about = WeightReport::of(&weight, &quantized).with_input(options.input);
                let bytes = quantized_bytes(quantized, bias.as_deref());
                if let Some(layer) = reports.borrow_mut().get_mut(name) {
                    layer.bytes_after = bytes.iter().map(|bytes| bytes.len()).sum();
                    layer.outcome = Ok(about);
                }
                Ok(bytes)
            }));
        } else if !layer_of(full, "bias").is_some_and(|name| chosen.contains(name)) {
            let info = vec![(full.to_string(), tensor.dtype(), tensor.shape().to_vec())];
            parts.push(Part::new(info, move || Ok(vec![tensor.data().into()])));
        }
    }
    let total = parts.len();
    match path {
        Some(path) => write(parts, metadata, path, &mut |done| progress(done, total))?,
        None => {
            for (i, part) in parts.into_iter().enumerate() {
                (part.bytes)()?;
                progress(i + 1, total);
            }
        }
    }
    Ok(report)
}

/// Whether a layer's name is one that checkpoints give to embeddings.
fn is_embedding(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    last.contains("embed") || ["emb", "wte", "wpe", "shared", "relative_attention_bias"].contains(&last.as_str())
}
