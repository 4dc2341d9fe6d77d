//! PyTorch, in a process of its own, where Python has torch: embedding bags, and scripts that time other layers.

use std::process::{Command, Output};

const SCRIPT: &str = include_str!("pytorch.py");

/// A Python that has torch.
pub struct PyTorch {
    /// Torch's version.
    pub version: String,
}

/// One table, and how it is measured.
pub struct Task<'a> {
    /// Its format's name.
    pub format: &'a str,
    pub rows: usize,
    pub dimension: usize,
    /// How often each is timed.
    pub repetitions: usize,
    /// Rows of a call.
    pub call: usize,
    /// Calls after which the first rows come again.
    pub calls: usize,
    /// Rows of a bag.
    pub bags: &'a [usize],
}

impl PyTorch {
    /// What `python3` has, or why there is none.
    pub fn find() -> Result<Self, String> {
        let version = python("import torch; print(torch.__version__)", &[])?;
        // Without what follows the release, as in 2.14.1+cpu.
        Ok(Self { version: version.trim().split('+').next().unwrap_or_default().to_string() })
    }

    /// Seconds for a row by each length of bags: the lower quartile, the median and the upper quartile.
    pub fn time(&self, task: &Task) -> Result<Vec<[f64; 3]>, String> {
        let numbers = [task.rows, task.dimension, task.repetitions, task.call, task.calls];
        let mut arguments = vec![task.format.to_string()];
        arguments.extend(numbers.iter().chain(task.bags).map(ToString::to_string));
        let output = python(SCRIPT, &arguments)?;
        let parse = |line: &str| {
            let numbers: Vec<f64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            <[f64; 3]>::try_from(numbers).ok()
        };
        let times: Option<Vec<_>> = output.lines().map(parse).collect();
        times.filter(|times| times.len() == task.bags.len()).ok_or_else(|| format!("it printed {output:?}"))
    }
}

/// What a script prints in a `python3` of its own, or the last line of what went wrong.
pub fn python(script: &str, arguments: &[String]) -> Result<String, String> {
    let mut command = Command::new("python3");
    // Huge pages, as this crate's tables have them.
    command.arg("-c").arg(script).args(arguments).env("THP_MEM_ALLOC_ENABLE", "1");
    let Output { status, stdout, stderr } = command.output().map_err(|e| format!("python3: {e}"))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        return Err(stderr.trim().lines().last().unwrap_or("python3 failed without a word").to_string());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
