//! Each body with made-up bytes, for a bounded number of times: `FBGEMM_RS_FUZZ_CASES` has more of them tried, and other
//! ones with another `FBGEMM_RS_FUZZ_SEED`. `FBGEMM_RS_FUZZ_CORPUS` names a folder of cargo-fuzz's corpora, whose files are
//! tried first.

use fbgemm_hardening::{BODIES, Body};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::path::Path;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|set| set.parse().unwrap_or_else(|_| panic!("{variable}={set} is no number")))
}

/// Tries a body so often. What ends it is made as small as it can be, and told.
fn drive(name: &str, cases: u32) {
    let (_, body): (_, Body) = *BODIES.iter().find(|(known, _)| *known == name).unwrap();
    if let Some(corpora) = std::env::var_os("FBGEMM_RS_FUZZ_CORPUS") {
        let corpus = Path::new(&corpora).join(name);
        let files = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display()));
        for file in files {
            body(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
    let cases = number("FBGEMM_RS_FUZZ_CASES").map_or(cases, |cases| cases as u32);
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number("FBGEMM_RS_FUZZ_SEED").unwrap_or(0).to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let bytes = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 200..800),
        1 => prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 255, 128]), 0..100),
    ];
    let tried = runner.run(&bytes, |bytes| {
        body(&bytes);
        Ok(())
    });
    if let Err(TestError::Fail(why, bytes)) = tried {
        panic!("{name} with {bytes:?}: {why}");
    }
    tried.unwrap();
}

#[test]
fn case_files_of_any_content_are_read_or_refused() {
    drive("cases", 1500);
}

#[test]
fn definitions_of_any_form_are_derived_or_refused() {
    drive("derive", 20_000);
}

#[test]
fn encoders_folders_of_any_content_are_opened_or_refused() {
    drive("encoder", 1500);
}

#[test]
fn models_files_of_any_content_are_read_or_refused() {
    drive("files", 6000);
}

#[test]
fn operators_with_any_sizes_and_values_compute_or_refuse() {
    drive("operators", 30_000);
}

#[test]
fn schemes_from_any_text_are_taken_or_refused() {
    drive("schemes", 20_000);
}

#[test]
fn requests_of_any_content_are_answered_or_refused() {
    drive("service", 3000);
}
