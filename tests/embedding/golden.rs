//! PyTorch's stored tables and outputs, bit for bit. They are the same on every instruction set.

use crate::FORMATS;
use fbgemm::{BagOptions, EmbeddingFormat, EmbeddingIndex, EmbeddingTable};
use half::f16;
use safetensors::SafeTensors;
use serde_json::Value;

struct Case<'a> {
    file: &'a SafeTensors<'a>,
    name: String,
    about: Value,
}

impl Case<'_> {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.file.tensor(&format!("{}/{tensor}", self.name)).ok().map(|tensor| tensor.data())
    }

    fn values<const N: usize, T>(&self, tensor: &str, read: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        Some(self.bytes(tensor)?.as_chunks().0.iter().map(|bytes| read(*bytes)).collect())
    }

    fn format(&self) -> EmbeddingFormat {
        let bits = self.about["bits"].as_u64().unwrap();
        FORMATS.into_iter().find(|format| u64::from(format.bits()) == bits).unwrap()
    }

    fn dimension(&self) -> usize {
        self.about["dim"].as_u64().unwrap() as usize
    }

    fn table(&self) -> EmbeddingTable<'static> {
        let dimension = self.dimension();
        let weight = match self.format() {
            EmbeddingFormat::Fp16 => self.values("weight", |bytes| f16::from_le_bytes(bytes).to_f32()),
            _ => self.values("weight", f32::from_le_bytes),
        };
        let Some(weight) = weight else {
            let packed = self.bytes("packed").unwrap().to_vec();
            let rows = packed.len() / self.format().row_bytes(dimension).unwrap();
            return EmbeddingTable::from_bytes(packed, self.format(), rows, dimension).unwrap();
        };
        fbgemm::pack_embedding(&weight, weight.len() / dimension, dimension, self.format()).unwrap()
    }

    /// What the operator gives, as bytes: of fp16 tables in fp16.
    fn output<I: EmbeddingIndex>(&self, table: &EmbeddingTable, read: impl Fn(&str) -> Vec<I>) -> Vec<u8> {
        let indices = read("indices");
        let weights = self.values("per_sample_weights", f32::from_le_bytes);
        let mut options = BagOptions::new();
        if let Some(weights) = &weights {
            options = options.per_sample_weights(weights);
        }
        let last = self.about["include_last_offset"] == true;
        if last {
            options = options.include_last_offset();
        }
        if self.about["mode"] == "mean" {
            options = options.mean();
        }
        let single = self.about["op"] == "embedding";
        let offsets = if single { Vec::new() } else { read("offsets") };
        if table.format() == EmbeddingFormat::Fp16 {
            let rows = if single { indices.len() } else { offsets.len() - usize::from(last) };
            let mut output = vec![f16::ZERO; rows * table.dimension()];
            if single {
                fbgemm::embedding_into(table, &indices, &mut output).unwrap();
            } else {
                fbgemm::embedding_bag_into(table, &indices, &offsets, options, &mut output).unwrap();
            }
            output.iter().flat_map(|x| x.to_le_bytes()).collect()
        } else {
            let output = match single {
                true => fbgemm::embedding(table, &indices),
                false => fbgemm::embedding_bag(table, &indices, &offsets, options),
            };
            output.unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()
        }
    }
}

/// Checks each case of a stored file and gives their number.
fn check(name: &str) -> usize {
    let path = format!("{}/tests/golden/embedding/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = 0;
    for (name, about) in header.metadata().as_ref().unwrap() {
        let Ok(about @ Value::Object(_)) = serde_json::from_str(about) else { continue };
        let case = Case { file: &file, name: name.clone(), about };
        let table = case.table();
        if let Some(packed) = case.bytes("packed") {
            assert_eq!(table.bytes(), packed, "{name}");
        }
        if let Some(unpacked) = case.bytes("unpacked") {
            let ours: Vec<u8> = table.unpack().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(ours, unpacked, "{name}");
        }
        let output = match case.about["index"].as_str().unwrap() {
            "i32" => case.output(&table, |tensor| case.values(tensor, i32::from_le_bytes).unwrap()),
            _ => case.output(&table, |tensor| case.values(tensor, i64::from_le_bytes).unwrap()),
        };
        assert_eq!(output, case.bytes("output").unwrap(), "{name}: {}", case.about);
        checked += 1;
    }
    checked
}

#[test]
fn pytorchs_quantized_tables_and_sums_are_given_bit_for_bit() {
    assert_eq!(check("embedding_bag"), 48);
}

#[test]
fn pytorchs_float_tables_means_and_single_rows_are_given_bit_for_bit() {
    assert_eq!(check("embedding_tables"), 56);
}
