//! PyTorch's stored tables and outputs, bit for bit. They are the same on every instruction set.

use crate::FORMATS;
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingIndex, EmbeddingTable};
use fbgemm_testkit::cases::{Case, CaseFile, Element};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::golden;
use half::f16;

fn table(case: &Case) -> EmbeddingTable<'static> {
    let bits = case.number("bits").unwrap();
    let format = FORMATS.into_iter().find(|format| format.bits() == bits).unwrap();
    let dimension = case.number("dim").unwrap() as usize;
    if !case.has("weight") {
        let (shape, packed) = case.tensor::<u8>("packed").unwrap();
        return EmbeddingTable::from_bytes(packed, format, shape[0], dimension).unwrap();
    }
    let (shape, weight) = match format {
        EmbeddingFormat::Fp16 => {
            let (shape, weight) = case.tensor::<f16>("weight").unwrap();
            (shape, weight.into_iter().map(f16::to_f32).collect())
        }
        _ => case.tensor::<f32>("weight").unwrap(),
    };
    fbgemm::pack_embedding(&weight, shape[0], dimension, format).unwrap()
}

/// Checks what the case's operator gives: of fp16 tables in fp16.
fn check_output<I: EmbeddingIndex + Element>(case: &Case, table: &EmbeddingTable) {
    let (_, indices) = case.tensor::<I>("indices").unwrap();
    let single = case.op == "embedding";
    let offsets = if single { Vec::new() } else { case.tensor::<I>("offsets").unwrap().1 };
    let weights = case.flag("weighted").then(|| case.tensor::<f32>("per_sample_weights").unwrap().1);
    let mut options = BagOptions::new();
    if let Some(weights) = &weights {
        options = options.per_sample_weights(weights);
    }
    if case.flag("include_last_offset") {
        options = options.include_last_offset();
    }
    if case.word("mode") == Some("mean") {
        options = options.mean();
    }
    if case.has_parameter("padding_idx") {
        options = options.padding_idx(case.number("padding_idx").unwrap() as usize);
    }
    if table.format() == EmbeddingFormat::Fp16 {
        let (_, expected) = case.tensor::<f16>("output").unwrap();
        let mut output = vec![f16::ZERO; expected.len()];
        match single {
            true => fbgemm::embedding_into(table, &indices, &mut output).unwrap(),
            false => fbgemm::embedding_bag_into(table, &indices, &offsets, options, &mut output).unwrap(),
        }
        assert!(output.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())), "{}", case.name);
    } else {
        let (_, expected) = case.tensor::<f32>("output").unwrap();
        let output = match single {
            true => fbgemm::embedding(table, &indices).unwrap(),
            false => fbgemm::embedding_bag(table, &indices, &offsets, options).unwrap(),
        };
        assert_eq!(bits(&output), bits(&expected), "{}", case.name);
    }
}

/// Checks each case of a stored file and gives their number.
fn check(name: &str) -> usize {
    let file = CaseFile::read(&golden(&format!("embedding/{name}"))).unwrap();
    let cases = file.cases().unwrap();
    for case in &cases {
        let table = table(case);
        if case.has("packed") {
            assert_eq!(table.bytes(), case.tensor::<u8>("packed").unwrap().1, "{}", case.name);
        }
        if case.has("unpacked") {
            let (_, unpacked) = case.tensor::<f32>("unpacked").unwrap();
            assert_eq!(bits(&table.unpack().unwrap()), bits(&unpacked), "{}", case.name);
        }
        match case.word("index") {
            Some("i32") => check_output::<i32>(case, &table),
            _ => check_output::<i64>(case, &table),
        }
    }
    cases.len()
}

#[test]
fn pytorchs_quantized_tables_and_sums_are_given_bit_for_bit() {
    assert_eq!(check("embedding_bag"), 48);
}

#[test]
fn pytorchs_float_tables_means_and_single_rows_are_given_bit_for_bit() {
    assert_eq!(check("embedding_tables"), 56);
}

#[test]
fn pytorchs_bags_with_a_padding_are_given_bit_for_bit() {
    assert_eq!(check("embedding_padding"), 60);
}
