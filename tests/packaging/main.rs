//! Builds of crates outside the workspace, with every provider and with none; and what the fetch does when it can't.

mod fetch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Variables that decide where FBGEMM comes from: a test sets its own.
const DECIDING: [&str; 10] = [
    "LD_LIBRARY_PATH",
    "FBGEMM_ROOT",
    "LIBTORCH",
    "LIBTORCH_USE_PYTORCH",
    "FBGEMM_RS_OFFLINE",
    "CARGO_NET_OFFLINE",
    "DOCS_RS",
    "CMAKE",
    "LIBCLANG_PATH",
    "RUSTFLAGS",
];

/// A fresh folder of this name for a test, and the folder that all builds here share their dependencies in.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder of the provider that this test program itself was built with.
fn provider_root() -> PathBuf {
    PathBuf::from(fbgemm::provider().unwrap().root)
}

/// A crate as a user has it, outside the workspace, that depends on this one by path.
fn user_crate(name: &str, features: &str) -> PathBuf {
    let folder = folder(name);
    let manifest = format!(
        "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         fbgemm = {{ path = {ROOT:?}, features = [{features}] }}\n"
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // The same versions as here, so that nothing needs looking up.
    std::fs::copy(Path::new(ROOT).join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    std::fs::create_dir(folder.join("src")).unwrap();
    let program = r#"
fn main() {
    let run = || -> fbgemm::Result<Vec<f32>> {
        let q = fbgemm::quantize_weight(&[0.5, -1.0, 0.25, 1.5, 0.0, -0.5], 2, 3)?;
        fbgemm::linear_int8_weight(&[1.0, 2.0, 3.0], &q, &q.pack()?, None)
    };
    println!("provider {:?}", fbgemm::provider().map(|p| (p.name, p.version)));
    println!("support {:?}", fbgemm::cpu_support().err());
    println!("linear {:?}", run());
    println!("pack {:?}", fbgemm::pack_matrix(&[1; 6], 3, 2).err());
    println!("quantize {:?}", fbgemm::quantize_weight(&[1.0; 6], 2, 3).err());
}
"#;
    std::fs::write(folder.join("src/main.rs"), program).unwrap();
    folder
}

/// `cargo COMMAND` in a user's crate. All share one target folder, so that dependencies are built once; a lock of
/// cargo's own keeps them apart.
fn cargo(crate_folder: &Path, command: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap());
    cargo.args([command, "--quiet"]).current_dir(crate_folder);
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("target"));
    for variable in DECIDING {
        cargo.env_remove(variable);
    }
    cargo
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What `cargo run` prints, which must work.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// The one line that a build which must fail says about it.
fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(!said.contains("panicked"), "a clean line, not a panic: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("error: fbgemm@")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].to_string()
}

fn assert_works(said: &str, provider: &str) {
    assert!(said.contains(&format!("provider Some((\"{provider}\"")), "{said}");
    assert!(said.contains("support None") && said.contains("linear Ok(["), "{said}");
}

/// One test, as the builds wait for each other anyway and each step reuses what the last one built.
#[test]
fn a_crate_outside_the_workspace_builds_with_every_provider() {
    // pinned
    let user = user_crate("user-download", r#""download""#);
    assert_works(&run(cargo(&user, "run")), "pinned");

    // libtorch, given and asked for
    let torch = provider_root();
    let mut command = cargo(&user, "run");
    command.env("LIBTORCH", &torch);
    assert_works(&run(command), "libtorch");
    let mut command = cargo(&user, "run");
    command.env("LIBTORCH_USE_PYTORCH", "1").env("PYTHONPATH", torch.parent().unwrap());
    assert_works(&run(command), "libtorch");

    // prefix, laid out over the same files
    let prefix = folder("prefix");
    std::fs::create_dir(prefix.join("lib")).unwrap();
    std::os::unix::fs::symlink(torch.join("include"), prefix.join("include")).unwrap();
    let lib = |name: &str| torch.join("lib").join(name).display().to_string();
    let script = format!("INPUT({} {})\n", lib("libtorch_cpu.so"), lib("libc10.so"));
    std::fs::write(prefix.join("lib/libfbgemm.so"), script).unwrap();
    let mut command = cargo(&user, "run");
    command.env("FBGEMM_ROOT", &prefix).env("LIBTORCH", "/not looked at");
    command.env("LD_LIBRARY_PATH", torch.join("lib"));
    assert_works(&run(command), "prefix");

    // none: for documentation, every operation refuses
    let mut command = cargo(&user, "run");
    command.env("DOCS_RS", "1");
    let said = run(command);
    assert!(said.contains("provider None"), "{said}");
    for operation in ["support Some", "linear Err", "pack Some", "quantize Some"] {
        assert!(said.contains(&format!("{operation}(UnsupportedTarget")), "{said}");
    }
}

#[test]
fn a_build_that_finds_no_fbgemm_says_what_to_set() {
    let plain = user_crate("user-plain", "");
    let said = refusal(cargo(&plain, "build"));
    for name in ["FBGEMM_ROOT", "LIBTORCH", "LIBTORCH_USE_PYTORCH", "download"] {
        assert!(said.contains(name), "{said}");
    }

    let refused = |variables: &[(&str, &str)], expected: &[&str]| {
        let mut command = cargo(&plain, "build");
        command.envs(variables.iter().copied());
        let said = refusal(command);
        for part in expected {
            assert!(said.contains(part), "{part:?} in {said}");
        }
    };
    refused(&[("FBGEMM_ROOT", "/nowhere")], &["FBGEMM_ROOT=/nowhere", "No such file"]);
    refused(&[("FBGEMM_ROOT", ROOT)], &["FBGEMM_ROOT=", "it has no include/fbgemm/Fbgemm.h"]);
    // Set and unusable is an error, whatever else could be used.
    let torch = provider_root();
    refused(&[("FBGEMM_ROOT", "/nowhere"), ("LIBTORCH", torch.to_str().unwrap())], &["FBGEMM_ROOT=/nowhere"]);
    refused(&[("LIBTORCH", "/nowhere")], &["LIBTORCH=/nowhere"]);
    refused(&[("LIBTORCH", ROOT)], &["LIBTORCH=", "it has no"]);
    refused(&[("LIBTORCH_USE_PYTORCH", "maybe")], &["LIBTORCH_USE_PYTORCH=maybe", "yes (1) nor no (0)"]);
    refused(&[("LIBTORCH_USE_PYTORCH", "1"), ("PYTHONPATH", ""), ("PYTHONNOUSERSITE", "1")], &["python3"]);
    // A prefix with headers and no library.
    let prefix = folder("prefix-empty");
    std::os::unix::fs::symlink(torch.join("include"), prefix.join("include")).unwrap();
    let pinned = |item: &str| std::path::absolute(torch.join("../..").join(item)).unwrap();
    let cmake = pinned("cmake-4.4.4/cmake/data/bin/cmake");
    let mut variables = vec![("FBGEMM_ROOT", prefix.to_str().unwrap())];
    if cmake.is_file() {
        variables.push(("CMAKE", cmake.to_str().unwrap()));
    }
    refused(&variables, &["(provider prefix)", "no libfbgemm.a and no libfbgemm.so"]);
    refused(&[("FBGEMM_ROOT", torch.to_str().unwrap()), ("CMAKE", "/nowhere/cmake")], &["CMAKE=/nowhere/cmake"]);
}

#[test]
fn a_build_that_cannot_fetch_says_why() {
    let user = user_crate("user-offline", r#""download""#);
    let empty = folder("empty-cache");
    let build = || {
        let mut command = cargo(&user, "build");
        command.env("FBGEMM_RS_CACHE", &empty);
        command
    };
    for variable in ["FBGEMM_RS_OFFLINE", "CARGO_NET_OFFLINE"] {
        let mut command = build();
        // Cargo itself obeys the second: all it needs was fetched for the other tests.
        command.env(variable, "true");
        let said = refusal(command);
        assert!(said.contains("the network is off") && said.contains("FBGEMM_ROOT"), "{said}");
    }
    let mut command = build();
    command.env("FBGEMM_RS_OFFLINE", "perhaps");
    assert!(refusal(command).contains("FBGEMM_RS_OFFLINE=perhaps"));

    // No python3 on PATH.
    let tools = folder("no-python");
    for tool in ["g++", "cc", "gcc", "ld", "as", "ar", "sh"] {
        let found = String::from_utf8(Command::new("which").arg(tool).output().unwrap().stdout).unwrap();
        if !found.trim().is_empty() {
            std::os::unix::fs::symlink(found.trim(), tools.join(tool)).unwrap();
        }
    }
    let rust = Path::new(&std::env::var_os("CARGO").unwrap()).parent().unwrap().to_path_buf();
    let mut command = build();
    command.env("PATH", std::env::join_paths([tools, rust]).unwrap());
    let said = refusal(command);
    assert!(said.contains("python3 can't be run") && said.contains("FBGEMM_ROOT"), "{said}");

    let left: Vec<_> = std::fs::read_dir(&empty).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().ends_with(".lock")), "{left:?}");
}
