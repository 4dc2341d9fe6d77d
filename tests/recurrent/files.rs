//! Recurrent layers in models: the walk, quantizing, reports, files by PyTorch's names, checkpoints, serde.

use crate::{Sizes, linear, quantized};
use fbgemm::{
    CheckpointOptions, Error, Gru, GruCell, Int8Scheme, LayerKind, Linear, LinearScheme, Lstm, LstmCell, ModelFile,
    Modules, Nonlinearity, PlainTensor, QuantizeOptions, QuantizeReport, Rnn, RnnCell, Skipped, load_modules,
    quantize_checkpoint, quantize_modules, save_modules, unload_modules,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::empty_folder;
use fbgemm_testkit::random::normal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// This process's own: others, limited to lesser instruction sets, run the same tests meanwhile.
fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("recurrent-{name}-{}", std::process::id())))
}

#[derive(Clone, Modules)]
struct Model {
    encoder: Lstm,
    decoder: GruCell,
    plain: Rnn,
    head: Linear,
}

fn model() -> Model {
    let rnn = |seed| RnnCell::new(linear(8, 16, 8, seed), linear(8, 8, 8, seed + 5), Nonlinearity::Relu).unwrap();
    Model {
        encoder: Sizes { input: 12, hidden: 8, layers: 2, both: true }.lstm(1),
        decoder: GruCell::new(linear(3 * 16, 16, 16, 50), linear(3 * 16, 16, 16, 60)).unwrap(),
        plain: Rnn::bidirectional(vec![rnn(70), rnn(80)]).unwrap(),
        head: linear(5, 16, 16, 90),
    }
}

fn run(model: &Model) -> Vec<u32> {
    let input = normal(6 * 12, 7, 1.0); // three steps of two rows
    let (mut h, mut c) = (model.encoder.zero_state(2).unwrap(), model.encoder.zero_state(2).unwrap());
    let encoded = model.encoder.forward(&input, &mut h, &mut c).unwrap();
    let mut state = vec![0.0; 6 * 16];
    model.decoder.forward(&encoded, &mut state).unwrap();
    let plain = model.plain.forward(&state, &mut model.plain.zero_state(2).unwrap()).unwrap();
    bits(&model.head.forward(&plain).unwrap())
}

const NAMES: [&str; 15] = [
    "encoder.weight_ih_l0",
    "encoder.weight_hh_l0",
    "encoder.weight_ih_l0_reverse",
    "encoder.weight_hh_l0_reverse",
    "encoder.weight_ih_l1",
    "encoder.weight_hh_l1",
    "encoder.weight_ih_l1_reverse",
    "encoder.weight_hh_l1_reverse",
    "decoder.weight_ih",
    "decoder.weight_hh",
    "plain.weight_ih_l0",
    "plain.weight_hh_l0",
    "plain.weight_ih_l0_reverse",
    "plain.weight_hh_l0_reverse",
    "head",
];

#[test]
fn the_walk_shows_pytorchs_names_and_options_choose_by_them_or_by_the_whole_layer() {
    let mut found = Vec::new();
    model().visit_linear("", &mut |name, _| found.push(name.to_string()));
    assert_eq!(found, NAMES);

    let mut half = model();
    let options = QuantizeOptions::new(Int8Scheme::accurate()).exclude("encoder").exclude("plain.weight_ih_*");
    let report = quantize_modules(&mut half, &options).unwrap();
    let quantized: Vec<&str> = report.quantized().map(|layer| layer.name.as_str()).collect();
    let expected =
        ["decoder.weight_ih", "decoder.weight_hh", "plain.weight_hh_l0", "plain.weight_hh_l0_reverse", "head"];
    assert_eq!(quantized, expected);
    assert!(report.layers[..8].iter().all(|layer| layer.outcome == Err(Skipped::Excluded)));
    assert!(half.decoder.is_quantized() && !half.encoder.is_quantized() && !half.plain.is_quantized());
    let kinds: Vec<bool> = report.layers.iter().map(|layer| layer.kind == LayerKind::Recurrent).collect();
    assert_eq!(kinds, [[true; 14].as_slice(), &[false]].concat());
    let text = report.to_string();
    assert!(
        text.contains("encoder.weight_ih_l1_reverse          32x16") && text.contains("\n5 of 15 in int8"),
        "{text}"
    );

    let mut only = model();
    let options = QuantizeOptions::new(LinearScheme::Fp16).include("decoder");
    assert_eq!(quantize_modules(&mut only, &options).unwrap().quantized().count(), 2);
    let unknown = QuantizeOptions::new(LinearScheme::Fp16).exclude("encode");
    assert_eq!(quantize_modules(&mut only, &unknown).unwrap_err(), Error::UnusedPattern { pattern: "encode".into() });
}

#[test]
fn every_kind_survives_a_file_bit_for_bit() {
    let folder = folder("survives");
    let schemes: [Option<LinearScheme>; 3] = [None, Some(Int8Scheme::accurate().into()), Some(LinearScheme::Fp16)];
    for (i, scheme) in schemes.into_iter().enumerate() {
        let mut model = scheme.map_or(model(), |scheme| quantized(&model(), scheme));
        let expected = run(&model);
        let path = folder.join(format!("{i}.safetensors"));
        save_modules(&model, &[PlainTensor { name: "norm", shape: &[2], values: &[1.0, 2.0] }], &path).unwrap();
        let file = ModelFile::open(&path).unwrap();
        assert_eq!(file.metadata()["fbgemm_format"], if i == 0 { "1" } else { "4" });
        assert_eq!(file.quantized_layers().count(), if i == 0 { 0 } else { 15 });
        let (dtype, shape, _) = file.describe("encoder.weight_ih_l1_reverse").unwrap();
        assert_eq!((dtype.as_str(), shape), (["F32", "I8", "F16"][i], vec![32, 16]));
        assert_eq!(file.describe("encoder.bias_hh_l0_reverse").unwrap().1, [32]);
        assert_eq!(file.describe("decoder.bias_ih").unwrap().1, [48]);
        if i == 1 {
            assert_eq!(file.describe("decoder.scale_hh").unwrap().1, [48]);
            assert_eq!(file.describe("decoder.zero_point_hh").unwrap().1, [48]);
            assert_eq!(file.describe("decoder.col_offsets_hh").unwrap().1, [48]);
            assert_eq!(file.metadata()["input:decoder.weight_hh"], "per_row");
        }
        unload_modules(&mut model);
        load_modules(&mut model, &file, 2).unwrap();
        assert_eq!(run(&model), expected);
        // Made from nothing but the file, and unloaded shells.
        let mut fresh = Model {
            encoder: file.lstm("encoder").unwrap(),
            decoder: file.gru_cell("decoder").unwrap(),
            plain: file.rnn("plain", Nonlinearity::Relu).unwrap(),
            head: file.linear("head").unwrap(),
        };
        assert!(fresh.encoder.is_bidirectional() && fresh.encoder.num_layers() == 2);
        assert_eq!(run(&fresh), expected);
        fresh.encoder = Lstm::unloaded(12, 8, 2, true).unwrap();
        fresh.decoder = GruCell::unloaded(16, 16).unwrap();
        fresh.plain = Rnn::unloaded(16, 8, 1, true, Nonlinearity::Relu).unwrap();
        load_modules(&mut fresh, &file, 1).unwrap();
        assert_eq!(run(&fresh), expected);
        // Another shape leaves the model as it was.
        fresh.encoder = Lstm::unloaded(12, 9, 2, true).unwrap();
        let error = load_modules(&mut fresh, &file, 1).unwrap_err().chain();
        assert!(
            error.starts_with(r#"layer "encoder.weight_ih_l0": the file has 32x12, the model expected 36x12"#),
            "{error}"
        );
        assert_eq!(fresh.encoder.bytes(), 0);
    }
}

#[test]
fn a_file_that_has_no_such_layer_says_what_is_missing() {
    let path = folder("missing").join("x.safetensors");
    save_modules(&model(), &[], &path).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let error = file.lstm("lstm").unwrap_err().chain();
    assert_eq!(error, r#"layer "lstm.weight_ih_l0": the file has no tensor "lstm.weight_ih_l0""#);
    let error = file.gru("encoder").unwrap_err().chain();
    assert_eq!(
        error,
        r#"layer "encoder": weight_ih has the shape 32x12, expected 3 x hidden_size 8 rows, as weight_hh has 8 columns"#
    );
    assert!(file.lstm_cell("decoder").is_err() && file.gru("decoder").is_err());
}

fn quantize(from: &Path, to: &Path, options: impl Into<CheckpointOptions>) -> fbgemm::Result<QuantizeReport> {
    quantize_checkpoint(&ModelFile::open(from)?, &options.into(), Some(to), &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_checkpoints_recurrent_layers_are_told_by_names_and_sizes_and_quantized_as_in_memory() {
    let folder = folder("checkpoint");
    let (from, to) = (folder.join("in.safetensors"), folder.join("out.safetensors"));
    save_modules(&model(), &[], &from).unwrap();
    for scheme in [LinearScheme::from(Int8Scheme::accurate()), LinearScheme::Fp16] {
        let report = quantize(&from, &to, QuantizeOptions::new(scheme)).unwrap();
        assert_eq!(report.quantized().count(), 15);
        let evidence = |name: &str| report.layers.iter().find(|layer| layer.name == name).unwrap().evidence.as_str();
        assert_eq!(evidence("encoder.weight_hh_l1_reverse"), "its name and its sizes are those of an LSTM");
        assert_eq!(evidence("decoder.weight_ih"), "its name and its sizes are those of a GRU");
        assert_eq!(evidence("plain.weight_ih_l0"), "its name and its sizes are those of an RNN");
        let of_recurrent = report.layers.iter().filter(|layer| layer.kind == LayerKind::Recurrent);
        assert_eq!(of_recurrent.count(), 14);
        let mut loaded = model();
        load_modules(&mut loaded, &ModelFile::open(&to).unwrap(), 1).unwrap();
        assert_eq!(run(&loaded), run(&quantized(&model(), scheme)));
        // Again: all are quantized already.
        let again = quantize(&to, &from.with_file_name("again.safetensors"), QuantizeOptions::new(scheme));
        assert_eq!(
            again.unwrap_err().chain(),
            "all 15 layers are quantized already, expected at least one to quantize"
        );
    }
    // Shards keep a cell's parts with what the metadata says of them.
    let options = CheckpointOptions::new(QuantizeOptions::new(Int8Scheme::accurate())).max_shard_size(2000);
    let report = quantize(&from, &folder.join("shards.safetensors"), options).unwrap();
    assert!(report.files.len() > 3);
    let mut loaded = model();
    load_modules(&mut loaded, &ModelFile::open(report.files.last().unwrap()).unwrap(), 1).unwrap();
    assert_eq!(run(&loaded), run(&quantized(&model(), Int8Scheme::accurate())));
    // A part of the model: patterns for the layer or its matrices.
    let options = QuantizeOptions::new(Int8Scheme::accurate()).include("encoder").exclude("*_reverse");
    assert_eq!(quantize(&from, &to, options).unwrap().quantized().count(), 4);
}

/// An LSTM with projections (`weight_hr_l0`) and a matrix without its other one.
#[test]
fn matrices_whose_sizes_are_no_recurrent_layers_are_left() {
    let folder = folder("unfit");
    let values = vec![0.5; 32 * 8];
    let plain = |name, shape| PlainTensor { name, shape, values: &values[..32 * 8] };
    let narrow = PlainTensor { name: "a.weight_hh_l0", shape: &[32, 3], values: &values[..96] };
    let tensors =
        [plain("a.weight_ih_l0", &[32, 8]), narrow, plain("b.weight_ih_l0", &[32, 8]), plain("c.weight", &[32, 8])];
    let path = folder.join("in.safetensors");
    save_modules(&(), &tensors, &path).unwrap();
    let to = folder.join("out.safetensors");
    let report = quantize(&path, &to, QuantizeOptions::new(Int8Scheme::accurate())).unwrap();
    assert_eq!(report.quantized().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["c"]);
    for layer in report.layers.iter().filter(|layer| layer.name != "c") {
        assert_eq!(layer.outcome, Err(Skipped::NoRule));
        let said = "its name is a recurrent layer's, but its sizes, or the other matrix's, are not";
        assert_eq!(layer.evidence, said);
    }
}

/// Files of layouts before version 4 named parts of a recurrent matrix that was chosen with `linear` as all others.
#[test]
fn files_with_the_older_names_are_read() {
    let path = folder("older").join("x.safetensors");
    let layer = quantized(&linear(32, 8, 8, 1), Int8Scheme::accurate());
    let Linear::Int8(int8) = &layer else { unreachable!() };
    let portable = int8.to_portable().unwrap();
    let weight = portable.weight();
    let bytes = |values: &[i32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    use safetensors::tensor::{Dtype, TensorView};
    let parts = [
        ("weight", Dtype::I8, vec![32, 8], weight.data().iter().map(|&q| q as u8).collect()),
        ("scale", Dtype::F32, vec![32], floats(weight.scales())),
        ("zero_point", Dtype::I32, vec![32], bytes(weight.zero_points())),
        ("col_offsets", Dtype::I32, vec![32], bytes(weight.col_offsets())),
        ("bias", Dtype::F32, vec![32], floats(portable.bias().unwrap())),
    ];
    let views = parts.iter().map(|(part, dtype, shape, data)| {
        (format!("lstm.weight_ih_l0.{part}"), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = [("fbgemm_format", "2"), ("input:lstm.weight_ih_l0", "per_row")];
    let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string())).into();
    std::fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    let read = ModelFile::open(&path).unwrap().linear("lstm.weight_ih_l0").unwrap();
    let x = normal(8, 1, 1.0);
    assert_eq!(read.forward(&x).unwrap(), layer.forward(&x).unwrap());
}

#[test]
fn layers_survive_serde_with_all_their_choices() {
    let sizes = Sizes { input: 5, hidden: 6, layers: 2, both: true };
    let lstm = quantized(&sizes.lstm(1), Int8Scheme::accurate()).with_batch_first();
    let again: Lstm = serde_json::from_str(&serde_json::to_string(&lstm).unwrap()).unwrap();
    assert!(again.is_batch_first() && again.is_bidirectional() && again.is_quantized());
    let input = normal(4 * 5, 2, 1.0);
    let run = |lstm: &Lstm| {
        let (mut h, mut c) = (lstm.zero_state(2).unwrap(), lstm.zero_state(2).unwrap());
        bits(&lstm.forward(&input, &mut h, &mut c).unwrap())
    };
    assert_eq!(run(&again), run(&lstm));
    let gru: Gru = serde_json::from_str(&serde_json::to_string(&sizes.gru(1)).unwrap()).unwrap();
    assert!(!gru.is_batch_first() && gru.num_layers() == 2);
    // A cell of another kind, and sizes that do not fit.
    let cell = serde_json::to_string(&lstm.cells()[0]).unwrap();
    assert!(serde_json::from_str::<LstmCell>(&cell).is_ok());
    assert_eq!(serde_json::from_str::<GruCell>(&cell).unwrap_err().to_string(), "this is a cell of kind lstm");
    let mut value: serde_json::Value = serde_json::from_str(&cell).unwrap();
    value["kind"] = "gru".into();
    assert!(
        serde_json::from_value::<GruCell>(value.clone()).unwrap_err().to_string().contains("weight_ih has the shape")
    );
    value["kind"] = "unknown".into();
    assert!(serde_json::from_value::<GruCell>(value).is_err());
}
