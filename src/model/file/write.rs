//! Writing a file part by part, beside the one that it replaces.

use super::format::{FORMAT, FORMAT_KEY, FP16_KEY, INPUT_KEY, layer_of};
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, TensorInfo};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Some tensors of a file to be, and how to get their bytes when it is their turn.
pub(crate) struct Part<'a> {
    pub(crate) tensors: Vec<(String, Dtype, Vec<usize>)>,
    pub(crate) bytes: Bytes<'a>,
}

/// One item for each of a part's tensors.
pub(crate) type Bytes<'a> = Box<dyn FnOnce() -> Result<Vec<Cow<'a, [u8]>>> + 'a>;

impl<'a> Part<'a> {
    pub(crate) fn new(
        tensors: Vec<(String, Dtype, Vec<usize>)>,
        bytes: impl FnOnce() -> Result<Vec<Cow<'a, [u8]>>> + 'a,
    ) -> Self {
        Self { tensors, bytes: Box::new(bytes) }
    }
}

/// Writes a file part by part under another name in the same folder, and renames it when it is whole; `done` is told
/// the number of parts written.
pub(crate) fn write(
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
    let header = header_bytes(&parts, &ends, &metadata)?;

    let temporary = Temporary::beside(path)?;
    let io = |e: std::io::Error| Error::Io { path: path.display().to_string(), source: e };
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

/// A file under a name of its own beside the one it is to replace; removed unless it gets there.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let no_name = || io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not the path of a file"));
        let name = path.file_name().ok_or_else(no_name)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!(".{}.{}-{count}.tmp", name.to_string_lossy(), std::process::id());
        let temporary = path.with_file_name(unique);
        let file = File::create_new(&temporary).map_err(io)?;
        Ok(Self { file, path: temporary })
    }

    /// On the disk before it takes the name: a crash leaves the old file or the new one.
    fn persist(self, path: &Path) -> Result<()> {
        let renamed = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, path));
        renamed.map_err(|e| Error::Io { path: path.display().to_string(), source: e })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed files are no longer there; of a failed one nothing must stay, and there is no one to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}
