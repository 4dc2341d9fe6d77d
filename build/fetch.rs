//! Asks `vendor/fetch.py` for a pinned item of the cache.

use crate::env;
use std::path::PathBuf;
use std::process::Command;

/// The folder of a pinned item (a name in `vendor/pins.json`), complete and checked; fetched if it isn't there.
pub fn item(name: &str) -> Result<PathBuf, String> {
    for read_by_the_script in ["FBGEMM_RS_CACHE", "XDG_CACHE_HOME", "HOME", "FBGEMM_RS_OFFLINE", "CARGO_NET_OFFLINE"] {
        env::get(read_by_the_script);
    }
    let output = Command::new("python3")
        .args(["vendor/fetch.py", "vendor/pins.json", name])
        .output()
        .map_err(|e| format!("python3 can't be run ({e}); it fetches the pinned {name}. {OTHER_WAYS}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some(path) = said.lines().find_map(|line| line.strip_prefix("path ")) {
        return Ok(PathBuf::from(path));
    }
    if let Some(error) = said.lines().find_map(|line| line.strip_prefix("error ")) {
        return Err(format!("{error}. {OTHER_WAYS}"));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or("it printed nothing");
    Err(format!("vendor/fetch.py failed for {name} ({last}). {OTHER_WAYS}"))
}

const OTHER_WAYS: &str = "Without a fetch: set FBGEMM_ROOT to a prefix with FBGEMM, or LIBTORCH to a libtorch \
    (README, \"Where FBGEMM comes from\")";
