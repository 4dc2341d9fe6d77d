//! What examples/export.py writes, beyond the models of the other tests: other schemes, layers that came in fp16, and
//! embeddings.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use fbgemm::{
    EmbeddingFormat, InputScheme, Isa, ModelFile, WeightScheme, pack_embedding, pack_matrix_fp16, quantize_weight_as,
};
use std::path::Path;

fn stored(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/exported");
    std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn layers_of_quantize_dynamic_in_float16_give_pytorchs_bits() {
    let made_on = match fbgemm::cpu_support().unwrap() {
        Isa::Avx2 => "avx2",
        Isa::Avx512 | Isa::Avx512Ymm => "avx512",
        _ => "avx512_e1",
    };
    let (model, outputs) = (stored("half"), stored(&format!("half-outputs-{made_on}")));
    let (model, outputs) = (ModelFile::parse(&model).unwrap(), ModelFile::parse(&outputs).unwrap());
    let mut compared = 0;
    for name in model.fp16_layers() {
        let (_, input) = outputs.tensor_f32(&format!("{name}/input")).unwrap();
        let (_, expected) = outputs.tensor_f32(&format!("{name}/output")).unwrap();
        assert_eq!(bits(&model.linear(name).unwrap().forward(&input).unwrap()), bits(&expected), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn the_scripts_schemes_quantize_as_this_crate_does() {
    let (new, per_row) = (WeightScheme::new(), InputScheme::new().per_row());
    let schemes = [
        ("per-channel", new.per_channel(), InputScheme::new()),
        ("symmetric", new.symmetric(), InputScheme::new()),
        ("seven-bits", new.reduce_range(), per_row),
        ("all", new.per_channel().symmetric().reduce_range(), per_row.reduce_range()),
    ];
    let floats = stored("float-layers");
    let floats = ModelFile::parse(&floats).unwrap();
    for (scheme, weights, input) in schemes {
        let file = stored(&format!("scheme-{scheme}"));
        let file = ModelFile::parse(&file).unwrap();
        assert_eq!(file.quantized_layers().len(), 6);
        for name in file.quantized_layers() {
            let (shape, weight) = floats.tensor_f32(&format!("{name}.weight")).unwrap();
            let expected = quantize_weight_as(&weight, shape[0], shape[1], weights).unwrap();
            let layer = file.portable(name).unwrap();
            assert_eq!(layer.weight().scales(), expected.scales(), "{scheme}: {name}");
            assert_eq!(layer.weight().zero_points(), expected.zero_points(), "{scheme}: {name}");
            assert!(layer.weight() == &expected, "{scheme}: {name}");
            assert_eq!(layer.input_scheme(), input, "{scheme}: {name}");
        }
    }
    let file = stored("scheme-fp16");
    let file = ModelFile::parse(&file).unwrap();
    assert_eq!(file.fp16_layers().count(), 6);
    for name in file.fp16_layers() {
        let full = format!("{name}.weight");
        let (shape, weight) = floats.tensor_f32(&full).unwrap();
        let expected = pack_matrix_fp16(&weight, shape[0], shape[1]).unwrap().unpack().unwrap();
        assert_eq!(bits(&file.tensor_f32(&full).unwrap().1), bits(&expected), "{name}");
    }
}

#[test]
fn pytorchs_own_quantized_embeddings_look_up_its_bits() {
    let (file, outputs) = (stored("embeddings-quantized"), stored("embeddings-outputs"));
    let (file, outputs) = (ModelFile::parse(&file).unwrap(), ModelFile::parse(&outputs).unwrap());
    assert!(file.embedding_tables().eq(["bag", "small", "word"]));
    for (name, format) in
        [("bag", EmbeddingFormat::Int8), ("small", EmbeddingFormat::Int4), ("word", EmbeddingFormat::Int8)]
    {
        let (shape, expected) = outputs.tensor_f32(name).unwrap();
        let embedding = file.embedding(name).unwrap();
        assert_eq!((embedding.rows(), embedding.dimension()), (shape[0], shape[1]), "{name}");
        assert_eq!(embedding.table().unwrap().format(), format, "{name}");
        let indices: Vec<i64> = (0..shape[0] as i64).collect();
        assert_eq!(bits(&embedding.forward(&indices).unwrap()), bits(&expected), "{name}");
    }
}

#[test]
fn the_script_packs_embeddings_as_this_crate_does() {
    let outputs = stored("embeddings-outputs");
    let (shape, weight) = ModelFile::parse(&outputs).unwrap().tensor_f32("float").unwrap();
    for (name, format) in [
        ("8", EmbeddingFormat::Int8),
        ("4", EmbeddingFormat::Int4),
        ("2", EmbeddingFormat::Int2),
        ("fp16", EmbeddingFormat::Fp16),
    ] {
        let file = stored(&format!("embeddings-{name}"));
        let table = ModelFile::parse(&file).unwrap().embedding_table("table").unwrap();
        let expected = pack_embedding(&weight, shape[0], shape[1], format).unwrap();
        assert_eq!((table.format(), table.bytes()), (format, expected.bytes()));
    }
}
