//! The program as a user runs it: what it prints, its exit codes, and a shipped copy of it.

mod bench;
mod clients;
mod embed;
mod files;
mod hostile;
mod info;
mod output;
mod page;
mod quantize;
mod serve;
mod soak;
mod verify;

use fbgemm_testkit::files::empty_folder;
use fbgemm_testkit::process::{LIMIT, emulated, stderr, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fbgemm");

fn fbgemm(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).env_remove(LIMIT).output().unwrap()
}

fn golden(name: &str) -> String {
    fbgemm_testkit::files::golden(name).display().to_string()
}

fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
}

#[test]
fn bad_usage_exits_with_2() {
    for arguments in [&["verify"][..], &["nonsense"], &[], &["info", "--nonsense"]] {
        assert_eq!(fbgemm(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_unsupported_cpu_exits_with_3() {
    let golden = golden("hazards-avx2");
    for arguments in
        [&["info"][..], &["demo"], &["verify", &golden], &["quantize", &golden, "out"], &["bench", "--quick"]]
    {
        let Some(mut command) = emulated("Nehalem", PROGRAM) else { return };
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("lacks AVX2"), "{}", stderr(&output));
    }
}

#[test]
fn demo_shows_every_linear_layer_of_a_real_model() {
    let output = fbgemm(&["demo", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = answer["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 37);
    for layer in layers {
        let error = layer["relative_error"].as_f64().unwrap();
        assert!(error > 1e-4 && error < 0.15, "{layer}");
    }
    assert!(answer["embedding_cosine"].as_f64().unwrap() > 0.95, "{answer}");
    let texts = &answer["texts"];
    assert!(texts["least_cosine"].as_f64().unwrap() > 0.95, "{texts}");
    let nearest = texts["nearest"].as_array().unwrap();
    assert!(nearest.len() == 3 && nearest[0]["texts"][0].as_str().unwrap().contains("bread"), "{texts}");
}
