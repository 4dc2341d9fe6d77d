//! The public API is the one on record, so that a change of it is seen and meant.

use super::ROOT;
use super::documentation::{documenting, target};
use fbgemm_testkit::process::succeed;
use public_api::Builder;
use std::path::Path;

const RECORD: &str = "public-api.txt";
const ACCEPT: &str = "FBGEMM_RS_ACCEPT_API=1 cargo test --test packaging -- --ignored builds_public_api";

#[test]
#[ignore = "builds other crates: run by cargo test --workspace -- --ignored builds_"]
fn builds_public_api_as_recorded() {
    let mut rustdoc = documenting(Path::new(ROOT), "rustdoc");
    succeed(rustdoc.args(["--lib", "--", "-Z", "unstable-options", "--output-format", "json"]));
    let json = target().join("doc/fbgemm.json");
    // What every type has, as `Any`, says nothing. Neither do pages of text.
    let api = match Builder::from_rustdoc_json(&json).omit_blanket_impls(true).omit_auto_trait_impls(true).build() {
        Ok(api) => api,
        Err(e) => {
            println!("NOT RUN: this toolchain's rustdoc writes another JSON than Rust 1.95's: {e}");
            return;
        }
    };
    let lines: Vec<String> =
        api.items().map(ToString::to_string).filter(|line| !line.contains("fbgemm::pages")).collect();
    let now = lines.join("\n") + "\n";

    let path = Path::new(ROOT).join(RECORD);
    if std::env::var_os("FBGEMM_RS_ACCEPT_API").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    assert!(now == recorded, "{RECORD} has another API:\n{}\nIf this is meant: {ACCEPT}", difference(&recorded, &now));
}

/// The lines that went and the lines that came.
fn difference(before: &str, after: &str) -> String {
    let only = |a: &str, b: &str, sign: char| {
        let others: Vec<&str> = b.lines().collect();
        let lines = a.lines().filter(|line| !others.contains(line)).map(|line| format!("{sign} {line}\n"));
        lines.collect::<String>()
    };
    only(before, after, '-') + &only(after, before, '+')
}
