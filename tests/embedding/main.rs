//! Embedding tables: PyTorch's cases, an independent reference, hostile arguments, and tables of all sizes and owners.

mod bounds;
mod errors;
mod golden;
mod properties;
mod reference;
mod tables;

use fbgemm::{EmbeddingFormat, Isa};
use std::process::Command;

/// FBGEMM reads it once, so every value takes a process of its own.
const LIMIT: &str = "FBGEMM_ENABLE_INSTRUCTIONS";

const FORMATS: [EmbeddingFormat; 5] =
    [EmbeddingFormat::Fp32, EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2];

/// Numbers between -1 and 1 that look random, the same in every run.
fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 2_654_435_761 % 1021) as f32 / 510.0 - 1.0).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn all_of_this_passes_with_every_instruction_set_of_the_cpu() {
    if std::env::var_os(LIMIT).is_some() {
        return;
    }
    let lesser: &[Isa] = match fbgemm::cpu_support().unwrap() {
        Isa::Avx512Vnni => &[Isa::Avx2, Isa::Avx512, Isa::Avx512Ymm, Isa::Avx512VnniYmm],
        Isa::Avx512 => &[Isa::Avx2, Isa::Avx512Ymm],
        _ => &[],
    };
    for isa in lesser {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--test-threads", "2"]).env(LIMIT, isa.variable()).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "with {isa}:\n{said}");
    }
}

#[test]
fn a_limit_to_a_lesser_instruction_set_is_honoured() {
    if let Ok(limit) = std::env::var(LIMIT) {
        assert_eq!(fbgemm::cpu_support().unwrap().variable(), limit);
    }
}
