//! Models in several files: which ones belong together, and that one of them is not taken for the whole.

use super::source::Source;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// In a shard's metadata: its number and how many there are, `1/3`.
pub(crate) const SHARD_KEY: &str = "fbgemm_shard";
/// The file's name that libraries look for, if a model is one file; and, with `.index.json` behind it, its index's.
pub(crate) const MODEL: &str = "model.safetensors";

/// Of more files than these none stays open: systems allow a process some thousand.
const MOST_OPEN: usize = 100;

/// One file of a model.
pub(crate) struct Shard<'a> {
    pub(crate) source: Source<'a>,
    /// Its path, where it has one.
    pub(crate) path: Option<PathBuf>,
}

/// What an index of shards says: which file each tensor is in.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) metadata: serde_json::Map<String, serde_json::Value>,
    pub(crate) weight_map: BTreeMap<String, String>,
}

/// The files of the model at `path`, and, where there is an index, the names of all their tensors.
///
/// # Errors
/// [`Error::Io`]; [`Error::MissingShards`]; [`Error::InvalidFile`] for an index that can't be read or a folder without
/// one model.
pub(crate) fn resolve(path: &Path) -> Result<(Vec<Shard<'static>>, Option<Vec<String>>)> {
    if path.is_dir() {
        return resolve_folder(path);
    }
    if is_index(path) {
        return resolve_index(path);
    }
    let path = path.to_path_buf();
    Ok((vec![Shard { source: Source::open(&path, true)?, path: Some(path) }], None))
}

/// Whether a path is that of an index of shards, by its name.
pub(crate) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"))
}

/// The one model in a folder: by its index, else its only file, else all the shards of one set.
fn resolve_folder(folder: &Path) -> Result<(Vec<Shard<'static>>, Option<Vec<String>>)> {
    let names = names_in(folder)?;
    let of = |ends: &str| names.iter().filter(|name| name.ends_with(ends)).collect::<Vec<_>>();
    let (indices, files) = (of(".safetensors.index.json"), of(".safetensors"));
    let several = |what: &str, found: &[&String]| {
        let found: Vec<&str> = found.iter().map(|name| name.as_str()).collect();
        let folder = folder.display();
        Error::InvalidFile { reason: format!("the folder {folder} has several {what}: {}; give one", found.join(", ")) }
    };
    match (&indices[..], &files[..]) {
        ([index], _) => resolve_index(&folder.join(index)),
        ([], []) => {
            let reason = format!("the folder {} has no .safetensors file and no index of shards", folder.display());
            Err(Error::InvalidFile { reason })
        }
        ([], [first, rest @ ..]) => {
            let set = set_of(first).filter(|set| files.iter().all(|name| set.contains(name.as_str())));
            match set {
                Some(set) => Ok((open_all(folder, set)?, None)),
                None if rest.is_empty() => Ok((open_all(folder, [first.to_string()].into())?, None)),
                None => Err(several("safetensors files", &files)),
            }
        }
        (indices, _) => Err(several("indices", indices)),
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let io = |source| Error::Io { path: folder.display().to_string(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn resolve_index(path: &Path) -> Result<(Vec<Shard<'static>>, Option<Vec<String>>)> {
    let index = read_index(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let files: BTreeSet<String> = index.weight_map.values().cloned().collect();
    // Names of files beside the index, not paths to anywhere.
    let plain = |name: &&String| Path::new(name).components().count() != 1 || name.as_str() == "..";
    if let Some(name) = files.iter().find(plain) {
        return Err(Error::InvalidFile {
            reason: format!("the index names {name:?}, expected the name of a file beside it"),
        });
    }
    if files.is_empty() {
        return Err(Error::InvalidFile { reason: format!("the index {} names no file", path.display()) });
    }
    Ok((open_all(folder, files)?, Some(index.weight_map.into_keys().collect())))
}

fn read_index(path: &Path) -> Result<Index> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.display().to_string(), source })?;
    let invalid =
        |e: serde_json::Error| Error::InvalidFile { reason: format!("{} is no index of shards: {e}", path.display()) };
    serde_json::from_slice(&bytes).map_err(invalid)
}

/// All of a model's files, or an error that names those that are not there.
fn open_all(folder: &Path, names: BTreeSet<String>) -> Result<Vec<Shard<'static>>> {
    let missing: Vec<&str> = names.iter().map(String::as_str).filter(|name| !folder.join(name).exists()).collect();
    if !missing.is_empty() {
        return Err(Error::MissingShards { of: names.len(), missing: missing.join(", ") });
    }
    let keep_open = names.len() <= MOST_OPEN;
    let open = |name: String| {
        let path = folder.join(name);
        Ok(Shard { source: Source::open(&path, keep_open)?, path: Some(path) })
    };
    names.into_iter().map(open).collect()
}

/// `NAME-00001-of-00003.safetensors` as its parts: everything before the numbers, the number, of how many, and the
/// rest. What comes before the numbers may also end in `_` or a dot, and the rest be nothing.
fn parts(name: &str) -> Option<(&str, usize, usize, &str)> {
    let (before, after) = name.rsplit_once("-of-")?;
    let stem = before.trim_end_matches(|c: char| c.is_ascii_digit());
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    let of = &after[..after.len() - rest.len()];
    Some((stem, before[stem.len()..].parse().ok()?, of.parse().ok()?, rest))
        .filter(|(stem, ..)| stem.ends_with(['-', '_', '.']))
}

/// The names of all shards of the set that this one's name is of.
fn set_of(name: &str) -> Option<BTreeSet<String>> {
    let (stem, _, of, rest) = parts(name).filter(|(_, _, of, _)| (1..=100_000).contains(of))?;
    let width = name.rsplit_once("-of-")?.1.len() - rest.len();
    Some((1..=of).map(|number| format!("{stem}{number:0width$}-of-{of:0width$}{rest}")).collect())
}

/// The name of one shard of `of`, as transformers names them.
pub(crate) fn shard_name(stem: &str, number: usize, of: usize) -> String {
    format!("{stem}-{number:05}-of-{of:05}.safetensors")
}

/// An error if a file that was given alone is one of several: its name, its metadata or an index beside it says so.
///
/// # Errors
/// [`Error::OneOfShards`].
pub(crate) fn check_alone(path: &Path, metadata: &HashMap<String, String>) -> Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let one_of = |says: String| Err(Error::OneOfShards { path: path.display().to_string(), says });
    if let Some((_, number, of, _)) = parts(&name).filter(|(_, _, of, _)| *of > 1) {
        return one_of(format!("its name says {number} of {of}"));
    }
    if let Some(says) = metadata.get(SHARD_KEY).filter(|says| !says.ends_with("/1")) {
        return one_of(format!("its metadata says {says}"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for beside in names_in(folder).unwrap_or_default().iter().filter(|name| name.ends_with(".safetensors.index.json")) {
        let Ok(index) = read_index(&folder.join(beside)) else { continue };
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        if files.len() > 1 && files.contains(&name) {
            return one_of(format!("{beside} beside it names {} files", files.len()));
        }
    }
    Ok(())
}
