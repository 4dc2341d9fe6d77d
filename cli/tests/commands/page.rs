//! The page of `fbgemm serve`, in a headless Chromium where this machine has one.

use crate::PROGRAM;
use crate::serve::{Served, model};
use fbgemm_testkit::process::{stderr, stdout};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// As Debian and others call it.
const BROWSERS: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

#[test]
fn a_person_s_texts_become_a_heat_map_and_figures_move() {
    let runs = |browser: &&&str| Command::new(browser).arg("--version").output().is_ok_and(|o| o.status.success());
    let Some(browser) = BROWSERS.iter().find(runs) else {
        eprintln!("NOT RUN: the page at /, as none of {BROWSERS:?} can be run");
        return;
    };
    let texts = ["the cat", "Zürich <b>is</b> a city", "the dog sat on the mat & the cat"];
    let mut command = Command::new(PROGRAM);
    command.args(["embed", &model("bert")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(texts.join("\n").as_bytes()).unwrap();
    let embedded = stdout(&child.wait_with_output().unwrap());
    let vectors: Vec<Value> = embedded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let served = Served::start("bert", &["--name", "a-name"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/commands/page.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(browser).args([&served.url, "a-secret", &json!([texts, vectors]).to_string()]);
    command.args(std::env::var_os("FBGEMM_RS_SCREENSHOT"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output), "all asserted\n");
}
