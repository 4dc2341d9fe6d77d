//! Embedding tables: PyTorch's cases, an independent reference, hostile arguments, and tables of all sizes and owners.

mod bounds;
mod errors;
mod golden;
mod modules;
mod properties;
mod reference;
mod tables;

use fbgemm::EmbeddingFormat;
use fbgemm_testkit::process::{LIMIT, again, lesser, succeed};

const FORMATS: [EmbeddingFormat; 5] =
    [EmbeddingFormat::Fp32, EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2];

#[test]
fn all_of_this_passes_with_every_instruction_set_of_the_cpu() {
    if std::env::var_os(LIMIT).is_some() {
        return;
    }
    for isa in lesser(fbgemm::cpu_support().unwrap()) {
        succeed(again().args(["--test-threads", "2"]).env(LIMIT, isa.variable()));
    }
}

#[test]
fn a_limit_to_a_lesser_instruction_set_is_honoured() {
    if let Ok(limit) = std::env::var(LIMIT) {
        assert_eq!(fbgemm::cpu_support().unwrap().variable(), limit);
    }
}
