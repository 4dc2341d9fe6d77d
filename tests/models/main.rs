//! Layers that carry their weight, whole models, and the files that hold them.

mod checkpoint;
mod derive;
mod files;
mod hostile;
mod layer;
mod lifecycle;
mod modules;
mod promises;

use fbgemm_testkit::files::empty_folder;
use std::path::{Path, PathBuf};

/// An empty folder of this name.
fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join("models").join(name))
}
