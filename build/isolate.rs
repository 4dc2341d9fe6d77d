//! A static FBGEMM for this crate's code alone: the bridge and the libraries become one object, in which all symbols
//! but the bridge's own are local.
//!
//! FBGEMM hides nothing. Linked as it is, its symbols would be the whole program's: a libtorch beside it would call
//! them, or answer for them, whichever the linker sees first, and neither side would know.

use crate::archive;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What Rust calls, as cxx names it.
const ENTRIES: &str = "cxxbridge1$";

/// What CMake found: the compiler, and the programs beside it.
pub struct Tools {
    pub compiler: PathBuf,
    pub ar: PathBuf,
    pub objcopy: PathBuf,
    pub nm: PathBuf,
    pub objdump: PathBuf,
}

impl Tools {
    /// Of the lines that CMakeLists.txt writes.
    pub fn read(lines: &str) -> Self {
        let mut lines = lines.lines().map(PathBuf::from);
        let mut next = || lines.next().unwrap_or_default();
        Self { compiler: next(), ar: next(), objcopy: next(), nm: next(), objdump: next() }
    }

    /// GNU's linker where the compiler has it: it is the one that merges objects best.
    fn linker(&self) -> Result<PathBuf, String> {
        for name in ["ld.bfd", "ld"] {
            let asked = Command::new(&self.compiler).arg(format!("-print-prog-name={name}")).output();
            let Some(path) = asked.ok().and_then(|output| String::from_utf8(output.stdout).ok()) else { continue };
            let path = PathBuf::from(path.trim());
            if Command::new(&path).arg("--version").output().is_ok_and(|output| output.status.success()) {
                return Ok(path);
            }
        }
        Err(format!("no linker was found that {} uses. {NEEDED}", self.compiler.display()))
    }
}

const NEEDED: &str = "A static FBGEMM needs GNU binutils 2.29 or newer: its symbols are made local, so that a program \
    can hold another FBGEMM";

/// Writes `libfbgemm_bridge.a` of the bridge and these static libraries to `folder`. They are `alone` where no shared
/// library has more of FBGEMM.
pub fn isolate(tools: &Tools, bridge: &Path, libraries: &[&Path], alone: bool, folder: &Path) -> Result<(), String> {
    for library in libraries {
        archive::check(library)?;
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let (merged, object) = (folder.join("merged.o"), folder.join("isolated.o"));
    // Groups of sections, one for each inline function and template, are merged here and dissolved: the final link
    // would otherwise keep another object's, and drop those that the local symbols are in. `--unique` keeps the rest
    // apart, so that it can still leave out what nothing calls.
    let mut merge = Command::new(tools.linker()?);
    merge.args(["-r", "--force-group-allocation", "-o"]).arg(&merged);
    merge.args(["text", "rodata", "data", "bss", "tdata", "tbss"].map(|section| format!("--unique=.{section}*")));
    merge.arg("--whole-archive").arg(bridge).args(["--no-whole-archive", "--start-group"]).args(libraries);
    run(merge.arg("--end-group"), "FBGEMM's libraries can't be merged with the bridge")?;
    // Variables of inline functions and templates are unique in a process, and objcopy makes only plain symbols local.
    let hide = "FBGEMM's symbols can't be made local";
    let unique: Vec<String> = run(Command::new(&tools.nm).arg(&merged), hide)?
        .lines()
        .filter_map(|line| line.split_once(" u ").map(|(_, name)| name.to_string()))
        .collect();
    let list = folder.join("unique.txt");
    std::fs::write(&list, unique.join("\n") + "\n").map_err(|e| format!("{}: {e}", list.display()))?;
    let (mut weaken, mut keep) = (Command::new(&tools.objcopy), Command::new(&tools.objcopy));
    let mut by_list = std::ffi::OsString::from("--weaken-symbols=");
    by_list.push(&list);
    run(weaken.arg(by_list).arg(&merged), hide)?;
    keep.args(["--wildcard", &format!("--keep-global-symbol={ENTRIES}*")]).arg(&merged).arg(&object);
    run(&mut keep, hide)?;
    check_hidden(tools, &object)?;
    if alone {
        check_complete(tools, &object, libraries)?;
    }
    check_position_independence(tools, &object, folder)?;
    if rounds_once(tools, &object) == Some(false) {
        println!(
            "cargo::warning=this FBGEMM rounds twice where PyTorch's rounds once, so that outputs differ in last bits: it \
             was compiled without fused multiply-add, as clang does; expected -ffp-contract=fast (README, \"A prefix of \
             your own\")"
        );
    }
    let library = folder.join("libfbgemm_bridge.a");
    run(Command::new(&tools.ar).arg("crs").arg(library).arg(&object), "the bridge can't be archived")?;
    let _ = std::fs::remove_file(merged); // it is as large as all of them
    Ok(())
}

/// Runs it, and gives what it printed; its first complaint in one line where it fails.
fn run(command: &mut Command, what: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{what}: {program} can't be run ({e}). {NEEDED}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
    Err(format!("{what}: {first}. {NEEDED}"))
}

/// The names that nm lists with these options.
fn names(tools: &Tools, options: &[&str], object: &Path) -> Result<BTreeSet<String>, String> {
    let said = run(Command::new(&tools.nm).args(options).arg(object), "the merged object can't be read")?;
    Ok(said.lines().filter_map(|line| line.split_whitespace().last()).map(String::from).collect())
}

/// Refuses an object that shows more than the bridge.
fn check_hidden(tools: &Tools, object: &Path) -> Result<(), String> {
    match names(tools, &["-g", "--defined-only"], object)?.iter().find(|name| !name.starts_with(ENTRIES)) {
        Some(other) => Err(format!("FBGEMM's symbols can't be made local: {other} is still seen. {NEEDED}")),
        None => Ok(()),
    }
}

/// Refuses an object that lacks what only FBGEMM's libraries can have.
fn check_complete(tools: &Tools, object: &Path, libraries: &[&Path]) -> Result<(), String> {
    let theirs = |name: &&String| {
        let plain = name.trim_start_matches('_');
        ["ZN6fbgemm", "ZNK6fbgemm", "ZN6asmjit", "ZNK6asmjit", "cpuinfo_", "clog_"].iter().any(|p| plain.starts_with(p))
    };
    let undefined = names(tools, &["-u"], object)?;
    let Some(name) = undefined.iter().find(theirs) else { return Ok(()) };
    let why = if libraries.iter().any(|library| archive::mentions(library, ".gnu.lto_")) {
        "they hold gcc's intermediate code (-flto), expected machine code (-ffat-lto-objects, or no -flto)"
    } else {
        "are headers and libraries of one version, and is each library whole?"
    };
    Err(format!("{} and the libraries beside it lack {name}: {why}", libraries[0].display()))
}

/// Whether FBGEMM's output stage multiplies and adds in one step, rounding once, as PyTorch's does: its source leaves that
/// to the compiler. `None` where it can't be told.
fn rounds_once(tools: &Tools, object: &Path) -> Option<bool> {
    let all = names(tools, &[], object).ok()?;
    // With a bias of floats and a scale for the tensor there is something to add.
    let stage = all.iter().find(|name| {
        name.contains("requantizeForFloatAvx2ILb0ELb0E") && name.contains("QuantizationGranularityE0ELb1ELb0E")
    })?;
    let mut disassemble = Command::new(&tools.objdump);
    disassemble.args(["-d", "--no-show-raw-insn"]).arg(format!("--disassemble={stage}")).arg(object);
    let code = run(&mut disassemble, "").ok()?;
    code.contains("vcvtdq2ps").then(|| code.contains("vfmadd"))
}

/// Refuses code that can be linked into no position-independent program, as Rust's are, by linking it.
fn check_position_independence(tools: &Tools, object: &Path, folder: &Path) -> Result<(), String> {
    let trial = folder.join("trial.so");
    let mut link = Command::new(&tools.compiler);
    link.args(["-shared", "-nostdlib", "-o"]).arg(&trial).arg(object);
    let output = link.output().map_err(|e| format!("{}: {e}", tools.compiler.display()))?;
    let _ = std::fs::remove_file(trial);
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("-fPIC") {
        return Err(
            "FBGEMM's libraries were compiled without -fPIC (CMAKE_POSITION_INDEPENDENT_CODE=ON), expected with: \
            Rust's programs are position-independent"
                .to_string(),
        );
    }
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
    Err(format!("the bridge merged with FBGEMM's libraries can't be linked: {first}"))
}
