//! The command with case files of any content.

use super::{PROGRAM, folder, stderr, stdout};
use fbgemm_testkit::process::LIMIT;
use fbgemm_testkit::random::normal;
use serde_json::Value;
use std::process::Command;

#[test]
fn verify_gives_or_refuses_case_files_of_any_content() {
    let folder = folder("verify-hostile");
    let mut files = Vec::new();
    for seed in 0..150 {
        let data: Vec<u8> = normal(400, seed, 1.0).iter().map(|x| x.to_bits() as u8).collect();
        let path = folder.join(format!("{seed}.safetensors"));
        std::fs::write(&path, fbgemm_hardening::case_file(&data).unwrap()).unwrap();
        files.push(path);
    }
    let mut command = Command::new(PROGRAM);
    // One instruction set for all of them, in this one process.
    command.args(["verify", "--json"]).args(&files).env(LIMIT, "AVX2").env("RUST_BACKTRACE", "0");
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert!(matches!(output.status.code(), Some(0..=2)) && !said.contains("panicked"), "{}: {said}", output.status);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stdout(&output)));
    let answers = answer["files"].as_array().unwrap();
    assert_eq!(answers.len(), files.len(), "an answer for each");
    let refused = answers.iter().filter(|file| file["error"].is_string()).count();
    // Changes that no file survives would try nothing but the header.
    assert!((20..148).contains(&refused), "{refused} of {} refused", files.len());
}
