//! Which FBGEMM to build against: `prefix`, `libtorch` or `pinned`, in this order.

use crate::{env, fetch};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Provider {
    pub name: &'static str,
    /// The folder that holds `include/` and `lib/`.
    pub root: PathBuf,
}

impl Provider {
    pub fn include(&self) -> PathBuf {
        self.root.join("include")
    }

    /// Whether FBGEMM is inside libtorch_cpu.so (else it is a library of its own).
    pub fn is_libtorch(&self) -> bool {
        self.name != "prefix"
    }
}

pub fn resolve() -> Result<Provider, String> {
    if let Some(root) = env::get("FBGEMM_ROOT") {
        let source = format!("FBGEMM_ROOT={root}");
        return provider("prefix", Path::new(&root), &source, &["include/fbgemm/Fbgemm.h"]);
    }
    const LIBTORCH_FILES: [&str; 3] = ["include/fbgemm/Fbgemm.h", "lib/libtorch_cpu.so", "lib/libc10.so"];
    if let Some(root) = env::get("LIBTORCH") {
        let source = format!("LIBTORCH={root}");
        return provider("libtorch", Path::new(&root), &source, &LIBTORCH_FILES);
    }
    if env::flag("LIBTORCH_USE_PYTORCH")? {
        let root = installed_torch()?;
        let source = format!("LIBTORCH_USE_PYTORCH=1, which found {}", root.display());
        return provider("libtorch", &root, &source, &LIBTORCH_FILES);
    }
    if env::may_download() {
        let root = fetch::item("fbgemm")?.join("torch");
        return provider("pinned", &root, "the pinned files", &LIBTORCH_FILES);
    }
    Err("no FBGEMM was found: set FBGEMM_ROOT to a prefix that holds it, set LIBTORCH to a libtorch or an \
        installed torch package, set LIBTORCH_USE_PYTORCH=1 to ask python3 for one, or turn on this crate's \
        feature `download` to fetch a pinned one"
        .to_string())
}

fn provider(name: &'static str, root: &Path, source: &str, files: &[&str]) -> Result<Provider, String> {
    if root.is_relative() {
        return Err(format!(
            "{source} can't be used: expected an absolute path, as a build script is not told in which folder cargo was \
             called"
        ));
    }
    let expected = format!("expected a folder with {}", files.join(", "));
    let root =
        root.canonicalize().map_err(|e| format!("{source} can't be used: {e}; {expected}, or no such variable"))?;
    for file in files {
        if !root.join(file).is_file() {
            return Err(format!("{source} can't be used: it has no {file}; {expected}"));
        }
    }
    Ok(Provider { name, root })
}

/// The installed `torch` package of the `python3` on PATH; finding it does not import it.
fn installed_torch() -> Result<PathBuf, String> {
    let script =
        "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new("python3")
        .args(["-c", script])
        .output()
        .map_err(|e| format!("LIBTORCH_USE_PYTORCH=1 can't be honoured: python3 can't be run ({e})"))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_string();
    if path.is_empty() {
        return Err("LIBTORCH_USE_PYTORCH=1 can't be honoured: the python3 on PATH has no torch".to_string());
    }
    Ok(PathBuf::from(path))
}
