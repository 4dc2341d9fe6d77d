//! Models' files: real ones, changed, and everything that a program does with one.

use crate::mutate;
use arbitrary::{Result, Unstructured};
use fbgemm::{
    Embedding, EmbeddingFormat, Error, Int8Scheme, Linear, LinearScheme, ModelFile, Nonlinearity, QuantizeOptions,
    load_modules, quantize_checkpoint,
};
use fbgemm_testkit::files::golden;
use std::ops::ControlFlow;
use std::sync::OnceLock;

/// Files of PyTorch, of this crate's formats, and of other tools.
const REAL: [&str; 15] = [
    "exported/model",
    "exported/dynamic",
    "exported/embeddings-2",
    "exported/embeddings-4",
    "exported/embeddings-8",
    "exported/embeddings-fp16",
    "exported/embeddings-quantized",
    "exported/float-layers",
    "exported/half",
    "exported/recurrent-accurate",
    "exported/recurrent-float",
    "exported/scheme-all",
    "exported/scheme-fp16",
    "exported/scheme-per-channel",
    "types/float8",
];

fn real() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        REAL.iter().map(|name| std::fs::read(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"))).collect()
    })
}

/// A changed file, read in every way there is.
pub fn files(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut work = || -> Result<()> {
        let file = mutate::safetensors(u.choose(real())?, &mut u)?;
        let scheme = [Int8Scheme::pytorch().into(), Int8Scheme::accurate().into(), LinearScheme::Fp16];
        let scheme = *u.choose(&scheme)?;
        let format = u.choose(&[None, Some(EmbeddingFormat::Int8), Some(EmbeddingFormat::Int4)])?.to_owned();
        use_all(&file, scheme, format);
        Ok(())
    };
    let _ = work(); // too few bytes to choose by
}

/// Everything that a program may do with a file. Whether it is refused is the file's matter.
fn use_all(bytes: &[u8], scheme: LinearScheme, format: Option<EmbeddingFormat>) {
    let Ok(file) = ModelFile::parse(bytes) else { return };
    let names: Vec<String> = file.tensor_names().into_iter().map(str::to_string).collect();
    assert!(file.bytes() <= bytes.len() as u64);
    if let Ok(layers) = file.load_quantized(1) {
        for (name, layer) in &layers {
            run(name, layer);
        }
        // What one file gave, a model of the same layers takes.
        let mut model = layers.clone();
        match load_modules(&mut model, &file, 1) {
            // It may have quantized embeddings and recurrent layers besides.
            Ok(()) | Err(Error::UnexpectedLayer { .. }) => {}
            Err(e) => panic!("{}", e.chain()),
        }
    }
    for name in &names {
        let _ = file.describe(name);
        if let Ok((shape, values)) = file.tensor_f32(name) {
            assert_eq!(shape.iter().product::<usize>(), values.len());
        }
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
        if let Ok(layer) = file.linear(layer) {
            run(name, &layer);
        }
        let _ = file.portable(layer);
        if let Ok(table) = file.embedding_table(layer) {
            let last = table.rows().saturating_sub(1) as i64;
            let _ = (table.check_rows(), table.unpack());
            let _ = fbgemm::embedding(&table, &[0, last, last + 1]);
            let _ = fbgemm::embedding_bag(&table, &[0, last], &[0i32, 1], fbgemm::BagOptions::new());
        }
        let _ = file.embedding(layer).and_then(|layer: Embedding| layer.forward(&[0i64]));
        recurrent(&file, layer);
    }
    let mut options = QuantizeOptions::new(scheme);
    if let Some(format) = format {
        options = options.embeddings(format);
    }
    let mut go_on = |_, _| ControlFlow::Continue(());
    let _ = quantize_checkpoint(&file, &options.into(), None, &mut go_on);
}

fn run(name: &str, layer: &Linear) {
    let output = layer.forward(&vec![0.5f32; 2 * layer.in_features()]);
    if let Ok(output) = output {
        assert_eq!(output.len(), 2 * layer.out_features(), "{name}");
    }
    // A layer of a file can be written again.
    if let Linear::Int8(layer) = layer {
        layer.to_portable().unwrap_or_else(|e| panic!("{name}: {}", e.chain()));
    }
}

fn recurrent(file: &ModelFile, name: &str) {
    if let Ok(lstm) = file.lstm(name) {
        let (mut h, mut c) = (lstm.zero_state(2).unwrap(), lstm.zero_state(2).unwrap());
        let _ = lstm.forward(&vec![0.5; 6 * lstm.input_size()], &mut h, &mut c);
    }
    if let Ok(gru) = file.gru(name) {
        let mut h = gru.zero_state(1).unwrap();
        let _ = gru.forward(&vec![0.5; 2 * gru.input_size()], &mut h);
    }
    if let Ok(rnn) = file.rnn(name, Nonlinearity::Tanh) {
        let mut h = rnn.zero_state(1).unwrap();
        let _ = rnn.forward(&vec![0.5; 2 * rnn.input_size()], &mut h);
    }
    let _ = (file.lstm_cell(name), file.gru_cell(name), file.rnn_cell(name, Nonlinearity::Relu));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_files_are_read_and_some_changed_ones_too() {
        for (name, file) in REAL.iter().zip(real()) {
            ModelFile::parse(file).unwrap_or_else(|e| panic!("{name}: {}", e.chain()));
        }
        // Of changed files some are read and some not: changes that no file survives would try nothing else.
        let mut read = 0;
        for seed in 0..200u32 {
            let byte = |i: u32| (i.wrapping_mul(2_654_435_761u32.wrapping_add(seed * 40_503)) >> 13) as u8;
            let data: Vec<u8> = (0..300).map(byte).collect();
            let mut u = Unstructured::new(&data);
            let file = mutate::safetensors(&real()[0], &mut u).unwrap();
            let layers = ModelFile::parse(&file).and_then(|file| file.load_quantized(1));
            read += usize::from(layers.is_ok_and(|layers| !layers.is_empty()));
        }
        assert!((20..180).contains(&read), "{read} of 200");
    }
}
