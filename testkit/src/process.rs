//! Other processes: a test program's own tests in one of theirs, with less of this CPU, or on another.

use fbgemm::Isa;
use std::path::Path;
use std::process::{Command, Output};

/// Limits FBGEMM to a lesser instruction set. It reads it once, so every value takes a process of its own.
pub const LIMIT: &str = "FBGEMM_ENABLE_INSTRUCTIONS";

/// The instruction sets that FBGEMM can be limited to where it would use this one.
pub fn lesser(isa: Isa) -> &'static [Isa] {
    match isa {
        Isa::Avx2 => &[],
        Isa::Avx512Vnni => &[Isa::Avx2, Isa::Avx512, Isa::Avx512Ymm, Isa::Avx512VnniYmm],
        Isa::Avx512VnniYmm => &[Isa::Avx2, Isa::Avx512, Isa::Avx512Ymm],
        Isa::Avx512 => &[Isa::Avx2, Isa::Avx512Ymm],
        _ => &[Isa::Avx2],
    }
}

/// This test program again, to be given arguments that choose tests.
///
/// # Panics
/// Where the program's path is unknown.
pub fn again() -> Command {
    Command::new(std::env::current_exe().expect("a test program knows its path"))
}

/// Runs one ignored test of this program in a process of its own, alone, and returns what it printed.
///
/// # Panics
/// Where the test fails, or there is none of this name.
pub fn alone(test: &str, variables: &[(&str, &str)]) -> String {
    let mut command = again();
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads", "1"]);
    command.envs(variables.iter().copied());
    let said = succeed(&mut command);
    assert!(said.contains("1 passed"), "{command:?} ran no test:\n{said}");
    said
}

/// Runs the command and returns what it printed, both streams.
///
/// # Panics
/// Where it fails, with what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = stdout(&output) + &stderr(&output);
    assert!(output.status.success(), "{command:?} failed:\n{said}");
    said
}

/// What it printed for programs.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into()
}

/// What it printed for people.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into()
}

/// The program on an emulated CPU, by QEMU's name for it; `None`, and a line that says so, where there is no emulator.
pub fn emulated(cpu: &str, program: impl AsRef<Path>) -> Option<Command> {
    const EMULATOR: &str = "qemu-x86_64";
    if let Err(e) = Command::new(EMULATOR).arg("--version").output() {
        eprintln!("NOT RUN on {cpu}: {EMULATOR} (package qemu-user) can't be run: {e}");
        return None;
    }
    let mut command = Command::new(EMULATOR);
    command.args(["-cpu", cpu]).arg(program.as_ref());
    Some(command)
}

/// `ulimit`'s words for so many KiB beyond the files that this program has mapped: libtorch is half a GB, a static FBGEMM
/// next to nothing.
///
/// # Panics
/// Where the system has no `/proc`.
pub fn memory_beside_libraries(kib: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let size = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let address = |digits| u64::from_str_radix(digits, 16).ok();
        line.contains(" /").then_some(address(to)? - address(from)?)
    };
    let mapped: u64 = maps.lines().filter_map(size).sum();
    format!("ulimit -v {};", kib + mapped / 1024)
}
