//! The build's own tools: the system's where it has them, else the pinned ones of the cache.

use crate::{env, fetch};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What CMake needs: itself, and a program that it drives.
pub struct CMake {
    pub program: PathBuf,
    /// Set when neither make nor ninja is installed.
    pub ninja: Option<PathBuf>,
}

const OLDEST_CMAKE: (u32, u32) = (3, 16);

pub fn cmake() -> Result<CMake, String> {
    let program = match env::get("CMAKE") {
        Some(program) => {
            check_cmake(Path::new(&program)).map_err(|e| format!("CMAKE={program} can't be used: {e}"))?;
            PathBuf::from(program)
        }
        None if check_cmake(Path::new("cmake")).is_ok() => PathBuf::from("cmake"),
        None => pinned("cmake", "cmake (3.16 or newer)", "CMAKE")?.join("cmake/data/bin/cmake"),
    };
    let drives = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    let ninja = if env::is_set("CMAKE_GENERATOR") || drives("make") {
        None
    } else if drives("ninja") {
        Some(PathBuf::from("ninja"))
    } else {
        Some(pinned("ninja", "make or ninja", "CMAKE_GENERATOR")?.join("ninja-1.13.2.data/scripts/ninja"))
    };
    Ok(CMake { program, ninja })
}

fn check_cmake(program: &Path) -> Result<(), String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.split_whitespace().nth(2).unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if output.status.success() && found >= OLDEST_CMAKE {
        Ok(())
    } else {
        Err(format!("version {version:?}, expected {}.{} or newer", OLDEST_CMAKE.0, OLDEST_CMAKE.1))
    }
}

/// Makes libclang loadable for bindgen.
pub fn libclang() -> Result<(), String> {
    if let Some(given) = env::get("LIBCLANG_PATH") {
        return load_libclang().map_err(|e| format!("LIBCLANG_PATH={given} can't be used: {e}"));
    }
    if load_libclang().is_ok() {
        return Ok(());
    }
    let dir = pinned("libclang", "libclang", "LIBCLANG_PATH")?.join("libclang-18.1.1.data/platlib/clang/native");
    // SAFETY: the build script has one thread, so nothing reads the environment meanwhile.
    unsafe { std::env::set_var("LIBCLANG_PATH", &dir) };
    load_libclang()
}

fn load_libclang() -> Result<(), String> {
    quietly(|| bindgen::clang_version().full).map(drop)
}

/// Runs what reports failure by a panic and gives the panic's text instead of a backtrace.
pub fn quietly<T>(run: impl FnOnce() -> T + std::panic::UnwindSafe) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(run);
    std::panic::set_hook(hook);
    result.map_err(|panic| match panic.downcast_ref::<String>() {
        Some(text) => text.clone(),
        None => panic.downcast_ref::<&str>().copied().unwrap_or("it gave no reason").to_string(),
    })
}

fn pinned(item: &str, what: &str, variable: &str) -> Result<PathBuf, String> {
    if env::may_download() {
        return fetch::item(item);
    }
    Err(format!(
        "{what} was not found: install it, set {variable}, or turn on this crate's feature `download` to fetch it"
    ))
}
