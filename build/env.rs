//! Every environment variable that the build reads goes through here, so that cargo knows them all.

use std::path::PathBuf;

/// The variable's value; unset and empty are the same.
pub fn get(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

pub fn is_set(name: &str) -> bool {
    get(name).is_some()
}

/// A yes-or-no variable; anything else than 1/0/true/false/on/off/yes/no is an error.
pub fn flag(name: &str) -> Result<bool, String> {
    match get(name).as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("0" | "false" | "off" | "no") => Ok(false),
        Some("1" | "true" | "on" | "yes") => Ok(true),
        Some(other) => Err(format!("{name}={other} is neither yes (1) nor no (0)")),
    }
}

pub fn out_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

/// Whether rustc builds with this sanitizer, and links its runtime.
pub fn rustc_sanitizes(sanitizer: &str) -> bool {
    std::env::var("CARGO_CFG_SANITIZE").is_ok_and(|all| all.split(',').any(|one| one == sanitizer))
}

/// Whether a provider exists for the target, as cargo names it (`cfg!` would describe the host).
pub fn target_has_fbgemm() -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu")
}

/// Whether this build may fetch what it lacks.
pub fn may_download() -> bool {
    std::env::var_os("CARGO_FEATURE_DOWNLOAD").is_some()
}
