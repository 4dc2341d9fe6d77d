//! Writing a file part by part, beside the one that it replaces; or several, as shards and their index.

use super::format::{EMBEDDING_KEY, FORMAT, FORMAT_KEY, FP16_KEY, INPUT_KEY, OF_LAYERS};
use super::model_file::ModelFile;
use super::output::Output;
use super::shards::{Index, MODEL, SHARD_KEY, Shard, check_alone, is_index, shard_name};
use super::source::Source;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use crate::model::names::{layer_of, recurrent_module};
use safetensors::tensor::{Dtype, TensorInfo};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Some tensors of a file to be, and how to get their bytes when it is their turn.
pub(crate) struct Part<'a> {
    pub(crate) tensors: Vec<(String, Dtype, Vec<usize>)>,
    content: Content<'a>,
}

/// Gives one item for each of a part's tensors.
type Make<'a> = Box<dyn FnOnce() -> Result<Vec<Cow<'a, [u8]>>> + 'a>;

enum Content<'a> {
    /// Made when it is their turn.
    Made(Make<'a>),
    /// As it stands in another file.
    Copied(Tensor<'a>),
    /// The bytes of the part's one tensor, piece by piece, to the function that it is given.
    Streamed(Stream<'a>),
}

type Stream<'a> = Box<dyn FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a>;

impl<'a> Part<'a> {
    /// Tensors whose bytes `make` gives, in the same order.
    pub(crate) fn made(
        tensors: Vec<(String, Dtype, Vec<usize>)>,
        make: impl FnOnce() -> Result<Vec<Cow<'a, [u8]>>> + 'a,
    ) -> Self {
        Self { tensors, content: Content::Made(Box::new(make)) }
    }

    /// A tensor of another file, under this name.
    pub(crate) fn copied(name: &str, tensor: Tensor<'a>) -> Self {
        let about = vec![(name.to_string(), tensor.dtype(), tensor.shape().to_vec())];
        Self { tensors: about, content: Content::Copied(tensor) }
    }

    /// One tensor whose bytes `stream` gives piece by piece, so that it is never whole in memory.
    pub(crate) fn streamed(
        tensor: (String, Dtype, Vec<usize>),
        stream: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a,
    ) -> Self {
        Self { tensors: vec![tensor], content: Content::Streamed(Box::new(stream)) }
    }

    /// Makes the bytes, for what making them tells, and drops them.
    ///
    /// # Errors
    /// What making them reports.
    pub(crate) fn make(self) -> Result<()> {
        match self.content {
            Content::Made(make) => make().map(drop),
            Content::Copied(_) => Ok(()),
            Content::Streamed(stream) => stream(&mut |_| Ok(())),
        }
    }

    fn size(&self) -> u64 {
        self.tensors.iter().map(size).sum()
    }
}

/// The bytes of a tensor, whose sizes the file that it is from has checked, or its layer.
fn size((_, dtype, shape): &(String, Dtype, Vec<usize>)) -> u64 {
    shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8
}

/// Where to write, and how.
pub(crate) struct Target<'a> {
    pub(crate) path: &'a Path,
    /// Above this many bytes in several files, each of which no larger if it has more than one part.
    pub(crate) max_shard_size: Option<u64>,
    /// Whether a file that can't be replaced may be overwritten where it lies.
    pub(crate) in_place: bool,
}

/// Writes all parts to a file, or to shards with an index, which is written last. Each appears whole or not at all, and
/// not before all of them have been read again. `done` is told the number of parts written, and may stop it. Gives the
/// files' paths.
pub(crate) fn write(
    parts: Vec<Part>,
    metadata: BTreeMap<String, String>,
    target: &Target,
    done: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<PathBuf>> {
    let mut names = BTreeSet::new();
    if let Some((name, ..)) = parts.iter().flat_map(|part| &part.tensors).find(|(name, ..)| !names.insert(name.clone()))
    {
        return Err(Error::DuplicateName { name: name.clone() });
    }
    let version = version(&parts, &metadata);
    let total_size: u64 = parts.iter().map(Part::size).sum();
    let shards = split(parts, target.max_shard_size);
    let places = Places::of(target, shards.len())?;
    let index = places.index.as_ref().map(|path| {
        let mut weight_map = BTreeMap::new();
        for (shard, file) in shards.iter().zip(&places.files) {
            let names = shard.iter().flat_map(|part| &part.tensors).map(|(name, ..)| name.clone());
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            weight_map.extend(names.map(|name| (name, file.to_string())));
        }
        let metadata = [("total_size".to_string(), total_size.into())].into_iter().collect();
        (path.clone(), Index { metadata, weight_map })
    });
    write_shards(shards, places.files, metadata, version, target.in_place, index, done)
}

/// The paths of the files to be.
struct Places {
    files: Vec<PathBuf>,
    index: Option<PathBuf>,
}

impl Places {
    /// Of so many files: the target itself for one; in a folder by libraries' own names.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::OneOfShards`] for a name that a file alone can't be read by.
    fn of(target: &Target, count: usize) -> Result<Self> {
        let in_folder = target.max_shard_size.is_some() && target.path.is_dir();
        let (folder, name) = match target.path.file_name() {
            _ if in_folder => (target.path, MODEL.into()),
            name => (target.path.parent().unwrap_or(Path::new("")), name.unwrap_or_default().to_string_lossy()),
        };
        if count == 1 && !in_folder {
            if is_index(target.path) {
                let source = std::io::Error::new(ErrorKind::InvalidInput, "this is the name of an index of shards");
                return Err(Error::Io { path: target.path.display().to_string(), source });
            }
            check_alone(target.path, &HashMap::new())?;
        }
        let stem = name.strip_suffix(".index.json").unwrap_or(&name);
        let stem = stem.strip_suffix(".safetensors").unwrap_or(stem);
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        if count > 1 {
            let files = (1..=count).map(|number| folder.join(shard_name(stem, number, count))).collect();
            return Ok(Self { files, index: Some(index) });
        }
        let file = if in_folder { folder.join(MODEL) } else { target.path.to_path_buf() };
        // One that is there already would be believed, and lead to other files.
        Ok(Self { files: vec![file], index: Some(index).filter(|index| in_folder && index.exists()) })
    }
}

/// Parts in their order, so many to a shard as fit.
fn split(parts: Vec<Part>, most: Option<u64>) -> Vec<Vec<Part>> {
    let (mut shards, mut filled) = (vec![Vec::new()], 0u64);
    for part in parts {
        let size = part.size();
        let current = shards.last_mut().expect("there is one from the start");
        if most.is_some_and(|most| !current.is_empty() && filled + size > most) {
            shards.push(vec![part]);
            filled = size;
        } else {
            current.push(part);
            filled += size;
        }
    }
    shards
}

/// The oldest layout that has all that the parts need.
fn version(parts: &[Part], metadata: &BTreeMap<String, String>) -> u32 {
    let channels = |(name, _, shape): &(String, Dtype, Vec<usize>)| layer_of(name, "scale").is_some() && shape != &[1];
    let of_version_2 = metadata.keys().any(|key| key.starts_with(INPUT_KEY) || key.starts_with(FP16_KEY))
        || parts.iter().any(|part| part.tensors[0].1 == Dtype::I8 && part.tensors.iter().any(channels));
    let recurrent = parts.iter().any(|part| {
        let (name, dtype, _) = &part.tensors[0];
        let fp16 = || metadata.contains_key(&format!("{FP16_KEY}{name}"));
        recurrent_module(name).is_some() && (*dtype == Dtype::I8 || fp16())
    });
    if recurrent {
        FORMAT
    } else if metadata.keys().any(|key| key.starts_with(EMBEDDING_KEY)) {
        3
    } else if of_version_2 {
        2
    } else {
        1
    }
}

fn write_shards(
    shards: Vec<Vec<Part>>,
    paths: Vec<PathBuf>,
    metadata: BTreeMap<String, String>,
    version: u32,
    in_place: bool,
    index: Option<(PathBuf, Index)>,
    done: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<PathBuf>> {
    let (count, mut written) = (shards.len(), 0);
    let mut outputs = Vec::new();
    for (number, (parts, path)) in shards.into_iter().zip(&paths).enumerate() {
        // What is said of a layer goes with it.
        let layers: BTreeSet<Cow<str>> =
            parts.iter().flat_map(|part| &part.tensors).filter_map(|(name, ..)| layer_of(name, "weight")).collect();
        let elsewhere = |key: &str| {
            let layer = OF_LAYERS.iter().find_map(|prefix| key.strip_prefix(prefix));
            count > 1 && layer.is_some_and(|layer| !layers.contains(layer))
        };
        let mut metadata: BTreeMap<String, String> = metadata
            .iter()
            .filter(|(key, _)| !elsewhere(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        metadata.insert(FORMAT_KEY.to_string(), version.to_string());
        metadata.remove(SHARD_KEY);
        if count > 1 {
            metadata.insert(SHARD_KEY.to_string(), format!("{}/{count}", number + 1));
        }
        let output = Output::create(path, in_place)?;
        write_parts(parts, &metadata, &output, &mut |parts| {
            let part = written + parts;
            done(part)
        })
        .map(|parts| written += parts)?;
        outputs.push(output);
    }
    // Whatever is written can be read: found out before anything is replaced.
    let again = |output: &Output| Ok(Shard { source: Source::open(output.spooled(), false)?, path: None });
    ModelFile::of(outputs.iter().map(again).collect::<Result<_>>()?, false)?;
    let index = match index {
        None => None,
        Some((path, index)) => {
            let output = Output::create(&path, in_place)?;
            let json = serde_json::to_vec_pretty(&index).map_err(|e| Error::InvalidFile { reason: e.to_string() })?;
            let mut file = output.open()?;
            file.write_all(&json).and_then(|()| file.sync_all()).map_err(|e| output.failed(e))?;
            Some(output)
        }
    };
    let mut files = paths;
    files.extend(index.as_ref().map(|index| index.path().to_path_buf()));
    outputs.into_iter().chain(index).try_for_each(Output::finish)?;
    Ok(files)
}

/// Writes one file's header and parts, and gives the number of parts.
fn write_parts(
    parts: Vec<Part>,
    metadata: &BTreeMap<String, String>,
    output: &Output,
    done: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<usize> {
    // As the safetensors library orders them, so that each is aligned: widest types first, then by name.
    let mut order: Vec<(Dtype, &str, usize)> = Vec::new();
    for tensor @ (name, dtype, _) in parts.iter().flat_map(|part| &part.tensors) {
        order.push((*dtype, name, size(tensor) as usize));
    }
    order.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let (mut ends, mut end) = (BTreeMap::new(), 0);
    for (_, name, size) in order {
        end += size;
        ends.insert(name.to_string(), (end - size, end));
    }
    let header = header_bytes(&parts, &ends, metadata)?;
    let mut file = output.open()?;
    let io = |e| output.failed(e);
    file.write_all(&header).map_err(io)?;
    let count = parts.len();
    for (i, Part { tensors, content }) in parts.into_iter().enumerate() {
        let place = |name: &str| (ends[name].0, ends[name].1 - ends[name].0);
        match content {
            Content::Made(make) => {
                for ((name, ..), bytes) in tensors.iter().zip(make()?) {
                    let (start, size) = place(name);
                    assert_eq!(bytes.len(), size, "a part gives the bytes that its tensors' shapes say");
                    file.seek(SeekFrom::Start((header.len() + start) as u64)).map_err(io)?;
                    file.write_all(&bytes).map_err(io)?;
                }
            }
            Content::Streamed(stream) => {
                let (start, size) = place(&tensors[0].0);
                file.seek(SeekFrom::Start((header.len() + start) as u64)).map_err(io)?;
                let mut written = 0;
                stream(&mut |piece| {
                    written += piece.len();
                    file.write_all(piece).map_err(io)
                })?;
                assert_eq!(written, size, "a part gives the bytes that its tensor's shape says");
            }
            Content::Copied(tensor) => {
                let (start, size) = place(&tensors[0].0);
                file.seek(SeekFrom::Start((header.len() + start) as u64)).map_err(io)?;
                let mut piece = zeroed(size.min(1 << 20))?;
                for at in (0..size).step_by(1 << 20) {
                    let piece = &mut piece[..(size - at).min(1 << 20)];
                    tensor.read_into(at, piece)?;
                    file.write_all(piece).map_err(io)?;
                }
            }
        }
        if i + 1 == count {
            file.sync_all().map_err(io)?; // which takes long, so it is over when the last part is told as done
        }
        if done(i + 1).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(count)
}

/// The file's first bytes: the header's length and the header, padded to a multiple of 8.
fn header_bytes(
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
