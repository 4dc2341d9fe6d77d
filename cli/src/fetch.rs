//! Fetches a pinned item once, with a progress bar: the same script and pins as the build's.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("../../vendor/fetch.py");
const PINS: &str = include_str!("../../vendor/pins.json");

/// The item's folder in the cache, complete and checked.
pub fn item(name: &'static str) -> Result<PathBuf, String> {
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT, PINS, name])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("python3 can't be run ({e}); it fetches {name}"))?;
    let mut bar: Option<ProgressBar> = None;
    let mut answer = Err(format!("fetching {name} stopped without an answer"));
    for line in BufReader::new(child.stdout.take().expect("piped above")).lines() {
        let line = line.map_err(|e| e.to_string())?;
        match line.split_once(' ') {
            Some(("progress", numbers)) => {
                let mut numbers = numbers.split(' ').filter_map(|n| n.parse().ok());
                if let (Some(done), Some(total)) = (numbers.next(), numbers.next()) {
                    bar.get_or_insert_with(|| progress_bar(total, name)).set_position(done);
                }
            }
            Some(("path", path)) => answer = Ok(PathBuf::from(path)),
            Some(("error", error)) => answer = Err(error.to_string()),
            _ => {}
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    child.wait().map_err(|e| e.to_string())?;
    answer
}

/// On a terminal only: indicatif hides it elsewhere.
fn progress_bar(total: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("fetching {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(total).with_style(style.expect("a fixed template")).with_message(what)
}
