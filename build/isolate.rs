//! A static FBGEMM for this crate's code alone: the bridge and the libraries become one object, in which all symbols
//! but the bridge's own are local.
//!
//! FBGEMM hides nothing. Linked as it is, its symbols would be the whole program's: a libtorch beside it would call
//! them, or answer for them, whichever the linker sees first, and neither side would know.

use crate::archive;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What Rust calls has this in its name, by cxx.
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

/// Writes `libfbgemm_bridge.a` of the bridge and these static libraries to `folder`, and gives the names of the shared ones
/// that it needs beside C's and C++'s. The static ones are `alone` where no shared library has more of FBGEMM.
pub fn isolate(
    tools: &Tools,
    bridge: &Path,
    libraries: &[&Path],
    alone: bool,
    folder: &Path,
) -> Result<Vec<&'static str>, String> {
    for library in libraries {
        archive::check(library)?;
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let object = folder.join("isolated.o");
    merge(tools, bridge, libraries, &object)?;
    hide(tools, &object, folder)?;
    let undefined = names(tools, &["-u"], &object)?;
    if alone {
        check_complete(&undefined, libraries)?;
    }
    let trial = folder.join("trial.so");
    link_for_trial(tools, &object, &trial)?;
    if rounds_once(tools, &trial) == Some(false) {
        println!(
            "cargo::warning=this FBGEMM rounds twice where PyTorch's rounds once, so that outputs differ in last bits: it \
             was compiled without fused multiply-add, as clang does; expected -ffp-contract=fast (README, \"A prefix of \
             your own\")"
        );
    }
    let library = folder.join("libfbgemm_bridge.a");
    run(Command::new(&tools.ar).arg("crs").arg(library).arg(&object), "the bridge can't be archived")?;
    for large in [object, trial] {
        let _ = std::fs::remove_file(large); // the archive has it
    }
    // FBGEMM's radix sort is the one function that uses OpenMP; the final link drops both where nothing calls it.
    let uses = |prefixes: &[&str]| undefined.iter().any(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    Ok(if uses(&["__kmpc_"]) {
        vec!["omp"]
    } else if uses(&["GOMP_", "omp_"]) {
        vec!["gomp"]
    } else {
        Vec::new()
    })
}

/// One object of the bridge and what it needs of the libraries.
fn merge(tools: &Tools, bridge: &Path, libraries: &[&Path], object: &Path) -> Result<(), String> {
    // Groups of sections, one for each inline function and template, are dissolved here: the final link would otherwise
    // keep another object's, and drop those that the local symbols are in. `--unique` keeps the rest apart, so that it
    // can still leave out what nothing calls.
    let mut link = Command::new(tools.linker()?);
    link.args(["-r", "--force-group-allocation", "-o"]).arg(object);
    link.args(["text", "rodata", "data", "bss", "tdata", "tbss"].map(|section| format!("--unique=.{section}*")));
    link.arg("--whole-archive").arg(bridge).args(["--no-whole-archive", "--start-group"]).args(libraries);
    run(link.arg("--end-group"), "FBGEMM's libraries can't be merged with the bridge").map(drop)
}

/// Makes all symbols of the object local but the bridge's own.
fn hide(tools: &Tools, object: &Path, folder: &Path) -> Result<(), String> {
    let what = "FBGEMM's symbols can't be made local";
    // Variables of inline functions and templates are unique in a process, and objcopy makes only plain symbols local.
    let said = run(Command::new(&tools.nm).arg(object), what)?;
    let unique: String =
        said.lines().filter_map(|line| line.split_once(" u ")).map(|(_, name)| format!("{name}\n")).collect();
    let list = folder.join("unique.txt");
    std::fs::write(&list, unique).map_err(|e| format!("{}: {e}", list.display()))?;
    let mut by_list = std::ffi::OsString::from("--weaken-symbols=");
    by_list.push(&list);
    run(Command::new(&tools.objcopy).arg(by_list).arg(object), what)?;
    let keep = format!("--keep-global-symbol=*{ENTRIES}*");
    run(Command::new(&tools.objcopy).args(["--wildcard", &keep]).arg(object), what)?;
    match names(tools, &["-g", "--defined-only"], object)?.iter().find(|name| !name.contains(ENTRIES)) {
        Some(other) => Err(format!("{what}: {other} is still seen. {NEEDED}")),
        None => Ok(()),
    }
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

/// Refuses an object that lacks what only FBGEMM's libraries can have.
fn check_complete(undefined: &BTreeSet<String>, libraries: &[&Path]) -> Result<(), String> {
    let theirs = |name: &&String| {
        let plain = name.trim_start_matches('_');
        ["ZN6fbgemm", "ZNK6fbgemm", "ZN6asmjit", "ZNK6asmjit", "cpuinfo_", "clog_"].iter().any(|p| plain.starts_with(p))
    };
    let Some(name) = undefined.iter().find(theirs) else { return Ok(()) };
    let why = if libraries.iter().any(|library| mentions(library, ".gnu.lto_")) {
        "they hold gcc's intermediate code (-flto), expected machine code (-ffat-lto-objects, or no -flto)"
    } else {
        "are headers and libraries of one version, and is each library whole?"
    };
    Err(format!("{} and the libraries beside it lack {name}: {why}", libraries[0].display()))
}

/// Links the object alone, and refuses code that can be linked into no position-independent program, as Rust's are.
fn link_for_trial(tools: &Tools, object: &Path, trial: &Path) -> Result<(), String> {
    let mut link = Command::new(&tools.compiler);
    let output = link.args(["-shared", "-nodefaultlibs", "-o"]).arg(trial).arg(object).output();
    let output = output.map_err(|e| format!("{}: {e}", tools.compiler.display()))?;
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

/// Whether FBGEMM's output stage multiplies and adds in one step, rounding once, as PyTorch's does: its source leaves that
/// to the compiler. `None` where it can't be told.
fn rounds_once(tools: &Tools, linked: &Path) -> Option<bool> {
    let symbols = run(Command::new(&tools.nm).arg("-S").arg(linked), "").ok()?;
    // With a bias of floats and a scale for the tensor there is something to add.
    let stage = symbols.lines().find(|line| {
        line.contains("requantizeForFloatAvx2ILb0ELb0E") && line.contains("QuantizationGranularityE0ELb1ELb0E")
    })?;
    let mut numbers = stage.split_whitespace().map(|word| u64::from_str_radix(word, 16).ok());
    let (start, size) = (numbers.next()??, numbers.next()??);
    let mut disassemble = Command::new(&tools.objdump);
    disassemble.arg("-d").arg(format!("--start-address={start}")).arg(format!("--stop-address={}", start + size));
    let code = run(disassemble.arg(linked), "").ok()?;
    code.contains("vcvtdq2ps").then(|| code.contains("vfmadd"))
}

/// Whether this text is anywhere in the file.
fn mentions(path: &Path, text: &str) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}
