//! Where the tests' files lie, and folders of their own.

use std::path::{Path, PathBuf};

/// Of golden files.
pub const EXTENSION: &str = ".safetensors";

/// A golden file of this repository, by its name without the extension, as "exported/model".
pub fn golden(name: &str) -> PathBuf {
    golden_folder().join(format!("{name}{EXTENSION}"))
}

/// The folder of all golden files.
pub fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// A folder of this path with nothing in it, whatever an earlier run left there.
///
/// # Panics
/// Where it can't be made.
pub fn empty_folder(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    let _ = std::fs::remove_dir_all(path); // there may be none
    std::fs::create_dir_all(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.to_path_buf()
}

/// What is in a folder, by name.
///
/// # Panics
/// Where it can't be read.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}
