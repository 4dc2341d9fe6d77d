//! A Python of the tests' own, with packages that `vendor/lock.py` locked.

use crate::process::{stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python of a virtual environment in this folder, made anew where the requirements are others than before; or what
/// stood in the way. pip checks each package's hash.
///
/// # Errors
/// What `python3` or pip said.
pub fn environment(folder: &Path, requirements: &Path) -> Result<PathBuf, String> {
    let python = folder.join("bin/python");
    let wanted = std::fs::read(requirements).map_err(|e| format!("{}: {e}", requirements.display()))?;
    let made = folder.join("complete");
    if std::fs::read(&made).is_ok_and(|made| made == wanted) {
        return Ok(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}{}", stdout(&output), stderr(&output))),
        Err(e) => Err(format!("{command:?}: {e}")),
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--require-hashes"];
    run(Command::new(&python).args(pip).arg("-r").arg(requirements))?;
    std::fs::write(&made, wanted).map_err(|e| format!("{}: {e}", made.display()))?;
    Ok(python)
}
