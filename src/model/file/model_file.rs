//! A safetensors file, or several as one, as a model: its layers and tensors, read when asked for.

use super::format::{FOREIGN_KEY, FORMAT, FORMAT_KEY, FP16_KEY, INPUT_KEY, floats, is_float, numbers, wrong};
use super::header::Header;
use super::shards::{self, Shard};
use super::source::Source;
use super::tensor::{Entry, Tensor};
use crate::error::{Error, Result};
use crate::model::names::{join_name, layer_of, part_name};
use crate::nn::fp16_linear::Fp16Linear;
use crate::nn::linear::Linear;
use crate::nn::quantized_linear::PortableLinear;
use crate::quant::input::InputScheme;
use crate::quant::weight::QuantizedWeight;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A model in safetensors files: a quantized one, or a checkpoint in floats.
///
/// One file or several shards as one; in memory, or read piece by piece when its tensors are asked for. Nothing in a
/// file is trusted: what is wrong with it is an error that names the layer.
pub struct ModelFile<'a> {
    sources: Vec<Source<'a>>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    /// Names of the layers in int8, in order.
    int8: Vec<String>,
    /// What lies in `config.json` beside the file.
    config: Option<serde_json::Value>,
}

impl ModelFile<'static> {
    /// Opens a safetensors file, a sharded model (its index, `model.safetensors.index.json`, or its folder), or what
    /// can only be read once, such as a pipe. Tensors are read when asked for; a regular file stays open,
    /// unless it is one of more than 100.
    ///
    /// ```no_run
    /// let file = fbgemm::ModelFile::open("all-MiniLM-L6-v2")?; // the folder, or the file in it
    /// println!("{} tensors", file.tensor_names().len());
    /// # Ok::<(), fbgemm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::WrongFormat`] for what is no safetensors file, by name; [`Error::InvalidFile`]; [`Error::InFile`]
    /// around them where it is one of several; [`Error::MissingShards`]; [`Error::OneOfShards`] for one shard alone;
    /// [`Error::NameClash`] for a tensor in two shards; [`Error::Io`]; and those of [`parse`](Self::parse).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (shards, wanted) = shards::resolve(path)?;
        let alone = shards.len() == 1 && wanted.is_none();
        let file = Self::of(shards, alone)?;
        if let Some(name) = wanted.iter().flatten().find(|name| !file.tensors.contains_key(*name)) {
            return Err(Error::MissingTensor { name: name.clone() });
        }
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        Ok(Self { config: folder.and_then(|folder| read_config(&folder.join("config.json"))), ..file })
    }
}

/// A model's `config.json`, where there is one that can be read.
fn read_config(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

impl<'a> ModelFile<'a> {
    /// Parses a file's bytes, which may be a memory map: the header alone, and that all of its quantized layers are
    /// complete and of the right types and shapes.
    ///
    /// # Errors
    /// [`Error::WrongFormat`], [`Error::InvalidFile`]; [`Error::NewerFormat`]; [`Error::InLayer`] around
    /// [`Error::MissingTensor`] and [`Error::WrongTensor`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::of(vec![Shard { source: Source::Bytes(bytes.into()), path: None }], false)
    }

    /// From whole shards; `alone` is a single one that was given by itself.
    pub(crate) fn of(shards: Vec<Shard<'a>>, alone: bool) -> Result<Self> {
        let mut file = Self {
            sources: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            int8: Vec::new(),
            config: None,
        };
        let mut has_format = false;
        let name = |shard: &Shard| Some(shard.path.as_deref()?.file_name()?.to_string_lossy().into_owned());
        let names: Vec<String> = shards.iter().map(|shard| name(shard).unwrap_or_default()).collect();
        for (Shard { source, path }, name) in shards.into_iter().zip(&names) {
            let header = Header::read(&source, path.as_deref()).map_err(|e| match names.len() {
                1 => e,
                _ => Error::InFile { file: name.clone(), source: Box::new(e) },
            })?;
            let metadata = header.about.metadata().clone().unwrap_or_default();
            if alone && let Some(path) = &path {
                shards::check_alone(path, &metadata)?;
            }
            match metadata.get(FORMAT_KEY) {
                None => {}
                Some(version) if version.parse().is_ok_and(|version| (1..=FORMAT).contains(&version)) => {
                    has_format = true;
                }
                Some(version) => return Err(Error::NewerFormat { given: version.clone(), known: FORMAT }),
            }
            for (name, info) in header.tensors() {
                let (start, end) = info.data_offsets;
                let range = header.start + start as u64..header.start + end as u64;
                let (source, dtype, shape) = (file.sources.len(), info.dtype, info.shape);
                if let Some(first) = file.tensors.insert(name.clone(), Entry { source, dtype, shape, range }) {
                    let (first, second) = (names[first.source].clone(), names[source].clone());
                    return Err(Error::NameClash { name, first, second });
                }
            }
            file.metadata.extend(metadata);
            file.sources.push(source);
        }
        if has_format {
            file.int8 = file.find_int8()?;
            for name in file.embedding_tables() {
                file.table_shape(name).map_err(|e| e.in_layer(name))?;
            }
        }
        Ok(file)
    }

    /// Names of the quantized layers, in int8 or fp16, in order.
    pub fn quantized_layers(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut names: Vec<&str> = self.int8.iter().map(String::as_str).chain(self.fp16_layers()).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// The file's metadata, by key; of shards, all of theirs.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What lies in `config.json` beside a file that was [opened](Self::open), if there is one.
    pub(crate) fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// The size of the file, or of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.sources.iter().map(Source::len).sum()
    }

    /// An error if a file has been written to since it was opened.
    ///
    /// # Errors
    /// [`Error::InputChanged`].
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.sources.iter().try_for_each(Source::check_unchanged)
    }

    /// Names of all tensors, in order.
    pub fn tensor_names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// A tensor's type (safetensors' word for it), shape and size in bytes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn describe(&self, name: &str) -> Result<(String, Vec<usize>, usize)> {
        let tensor = self.tensor(name)?;
        Ok((tensor.dtype().to_string(), tensor.shape().to_vec(), tensor.len()))
    }

    /// A float tensor's shape and values, as `f32`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::WrongTensor`] for other types than F32, F64, F16 and BF16;
    /// [`Error::InputChanged`], [`Error::Io`].
    pub fn tensor_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self.tensor(name)?;
        Ok((tensor.shape().to_vec(), floats(name, &tensor)?))
    }

    /// A layer in int8 in its stored form.
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
            if self.is_int8(name) {
                return self.read_portable(name)?.pack().map(Linear::Int8);
            }
            let (out_features, in_features) = self.shape(name)?;
            let (_, weight) = self.tensor_f32(&self.part_name(name, "weight"))?;
            if self.is_fp16(name) {
                return Fp16Linear::new(&weight, self.bias(name)?, out_features, in_features).map(Linear::Fp16);
            }
            Linear::new(weight, self.bias(name)?, out_features, in_features)
        };
        read().map_err(|e: Error| e.in_layer(name))
    }

    /// Every quantized layer by name, in int8 or fp16, packed for this CPU by `threads` threads (at least one; the
    /// calling one is among them).
    ///
    /// # Errors
    /// The first in the order of names, as [`linear`](Self::linear).
    pub fn load_quantized(&self, threads: usize) -> Result<BTreeMap<String, Linear>> {
        let names: Vec<&str> = self.quantized_layers().collect();
        let layers = in_parallel(&names, threads, |name| self.linear(name))?;
        Ok(names.into_iter().map(str::to_string).zip(layers).collect())
    }

    /// A linear layer's out_features and in_features.
    pub(crate) fn shape(&self, name: &str) -> Result<(usize, usize)> {
        let full = self.part_name(name, "weight");
        let weight = self.tensor(&full)?;
        match weight.shape()[..] {
            [out_features, in_features] => Ok((out_features, in_features)),
            _ => Err(wrong(&full, &weight, "2 dimensions")),
        }
    }

    /// How many bytes of the file a linear layer takes.
    pub(crate) fn layer_bytes(&self, name: &str) -> usize {
        let parts = ["weight", "scale", "zero_point", "col_offsets", "bias"];
        parts.iter().filter_map(|part| Some(self.part(name, part).ok()?.len())).sum()
    }

    /// Names of the layers with their weights in fp16, in order.
    pub fn fp16_layers(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().filter_map(|key| key.strip_prefix(FP16_KEY))
    }

    pub(crate) fn is_fp16(&self, name: &str) -> bool {
        self.metadata.contains_key(&format!("{FP16_KEY}{name}"))
    }

    pub(crate) fn is_int8(&self, name: &str) -> bool {
        self.int8.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.to_string() })?;
        Ok(Tensor::new(entry, &self.sources[entry.source]))
    }

    /// What a part of a linear layer is called here.
    pub(crate) fn part_name(&self, layer: &str, part: &str) -> String {
        let full = part_name(layer, part);
        // As versions before 4 of the layout named the parts of a recurrent layer's matrix.
        let before = || Some(join_name(layer, part)).filter(|before| self.tensors.contains_key(before));
        if self.tensors.contains_key(&full) { full } else { before().unwrap_or(full) }
    }

    fn part(&self, layer: &str, part: &str) -> Result<Tensor<'_>> {
        self.tensor(&self.part_name(layer, part))
    }

    /// Where a tensor's bytes are.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub(crate) fn place(&self, name: &str) -> Result<(&Source<'a>, Range<u64>)> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.to_string() })?;
        Ok((&self.sources[entry.source], entry.range.clone()))
    }

    /// The names of the layers in int8; an error where one is incomplete.
    fn find_int8(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for (full, tensor) in self.tensors.iter() {
            match (layer_of(full, "weight"), layer_of(full, "col_offsets")) {
                (Some(name), _) if self.metadata.contains_key(&format!("{FOREIGN_KEY}{name}")) => {}
                (Some(name), _) if tensor.dtype == Dtype::I8 => names.push(name.into_owned()),
                // Beside a weight in floats it is something else by that name.
                (_, Some(name)) if !self.part(&name, "weight").is_ok_and(|w| is_float(w.dtype())) => {
                    names.push(name.into_owned());
                }
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
        let channels = if self.part(name, "scale")?.shape() == [n] { n } else { 1 };
        let expected = [("weight", Dtype::I8, vec![n, k]), ("scale", Dtype::F32, vec![channels])];
        let more = [("zero_point", Dtype::I32, vec![channels]), ("col_offsets", Dtype::I32, vec![n])];
        for (part, dtype, shape) in expected.into_iter().chain(more) {
            self.expect(&self.part_name(name, part), dtype, &shape)?;
        }
        let bias = self.part_name(name, "bias");
        if self.tensors.contains_key(&bias) {
            self.expect(&bias, Dtype::F32, &[n])?;
        }
        Ok([n, k])
    }

    fn expect(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Tensor<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() == dtype && tensor.shape() == shape {
            return Ok(tensor);
        }
        Err(wrong(name, &tensor, &format!("{dtype} {shape:?}")))
    }

    fn read_portable(&self, name: &str) -> Result<PortableLinear> {
        let [n, k] = self.check_shapes(name)?;
        let part = |part: &str| self.part(name, part);
        let scales = numbers(&part("scale")?.data()?, f32::from_le_bytes)?;
        let zero_points = numbers(&part("zero_point")?.data()?, i32::from_le_bytes)?;
        let col_offsets = numbers(&part("col_offsets")?.data()?, i32::from_le_bytes)?;
        let data = numbers(&part("weight")?.data()?, i8::from_le_bytes)?;
        let weight = QuantizedWeight::from_stored(data, &col_offsets, scales, zero_points, n, k)?;
        let input = match self.metadata.get(&format!("{INPUT_KEY}{name}")) {
            Some(scheme) => scheme.parse()?,
            None => InputScheme::new(),
        };
        Ok(PortableLinear::new(weight, self.bias(name)?)?.with_input(input))
    }

    pub(crate) fn bias(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let full = self.part_name(name, "bias");
        let Ok(tensor) = self.tensor(&full) else { return Ok(None) };
        let (out_features, _) = self.shape(name)?;
        match tensor.shape() {
            [length] if *length == out_features => floats(&full, &tensor).map(Some),
            _ => Err(wrong(&full, &tensor, &format!("floats of shape [{out_features}]"))),
        }
    }
}

impl std::fmt::Debug for ModelFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFile")
            .field("tensors", &self.tensors.len())
            .field("quantized", &self.quantized_layers().count())
            .finish_non_exhaustive()
    }
}

/// `work` on each item by so many threads, this one among them; the first error in the items' order.
pub(crate) fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    threads: usize,
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
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
