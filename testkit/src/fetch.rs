//! Fetches a pinned item once: the same script and pins as the build's.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("../../vendor/fetch.py");
const PINS: &str = include_str!("../../vendor/pins.json");

/// The item's folder in the cache, complete and checked. `progress` is told bytes done and bytes in all, now and then
/// while something is fetched.
///
/// # Errors
/// Why it can't be had.
pub fn item(name: &str, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, String> {
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT, PINS, name])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("python3 can't be run ({e}); it fetches {name}"))?;
    let mut answer = Err(format!("fetching {name} stopped without an answer"));
    for line in BufReader::new(child.stdout.take().expect("piped above")).lines() {
        let line = line.map_err(|e| e.to_string())?;
        match line.split_once(' ') {
            Some(("progress", numbers)) => {
                let mut numbers = numbers.split(' ').filter_map(|n| n.parse().ok());
                if let (Some(done), Some(total)) = (numbers.next(), numbers.next()) {
                    progress(done, total);
                }
            }
            Some(("path", path)) => answer = Ok(PathBuf::from(path)),
            Some(("error", error)) => answer = Err(error.to_string()),
            _ => {}
        }
    }
    child.wait().map_err(|e| e.to_string())?;
    answer
}
