//! What this crate is to others: crates outside the workspace that use it, their shipped programs, the documentation,
//! the public API; and what the fetch does when it can't.
//!
//! Tests that build other crates take minutes, so `cargo test` leaves them out. They run by
//! `cargo test --workspace -- --ignored builds_`, hence their names.

mod api;
#[path = "../../build/archive.rs"]
mod archive;
mod documentation;
mod fetch;
mod packages;
mod plugin;
mod prefix;
mod providers;

use fbgemm_testkit::files::empty_folder;
use fbgemm_testkit::process::{stderr, stdout};
use std::ffi::OsStr;
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

/// A fresh folder of this name for a test.
fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
}

/// What follows a mark in the README: the block's own text, as a user copies it.
fn readme_block(mark: &str) -> String {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let block = readme.split(mark).nth(1).and_then(|rest| rest.split("```").nth(1));
    let (_language, text) = block.and_then(|block| block.split_once('\n')).expect("the README has the block");
    text.to_string()
}

/// The folder that all builds here share, so that dependencies are built once; a lock of cargo's own keeps them apart.
fn shared_target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("target")
}

/// A crate as a user has it, outside the workspace, that depends on this one by path.
fn user_crate(folder_name: &str, features: &str) -> PathBuf {
    let folder = folder(folder_name);
    let manifest = format!(
        "[package]\nname = \"my-service\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         fbgemm = {{ path = {ROOT:?}, features = [{features}] }}\n"
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // The same versions as here, so that nothing needs looking up.
    std::fs::copy(Path::new(ROOT).join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    std::fs::write(folder.join("build.rs"), readme_block("<!-- a test uses this as it is -->")).unwrap();
    // Where the README's lines look for the program.
    std::os::unix::fs::symlink(shared_target(), folder.join("target")).unwrap();
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

/// A command in a user's crate, which sees none of the variables that decide where FBGEMM comes from.
fn in_crate(program: impl AsRef<OsStr>, crate_folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(crate_folder).env("CARGO_TARGET_DIR", shared_target());
    // What is looked at is no code's speed: the dependencies need not be optimized.
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
    for variable in DECIDING {
        command.env_remove(variable);
    }
    command
}

/// `cargo COMMAND` in a user's crate.
fn cargo(crate_folder: &Path, command: &str) -> Command {
    let mut cargo = in_crate(std::env::var_os("CARGO").unwrap(), crate_folder);
    cargo.args([command, "--quiet", "--release"]);
    cargo
}

fn text(output: &Output) -> String {
    stdout(output) + &stderr(output)
}
