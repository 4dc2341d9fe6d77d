//! Embeddings in models: the walk finds them, one call quantizes them, and files give them back bit for bit.

use crate::FORMATS;
use fbgemm::{
    Embedding, EmbeddingBag, EmbeddingFormat, Error, Int8Scheme, LayerKind, Linear, ModelFile, Module, ModuleMut,
    Modules, QuantizeOptions, Skipped, load_modules, pack_embedding, quantize_modules, save_modules, unload_modules,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::{empty_folder, golden};
use fbgemm_testkit::random::normal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Modules)]
struct Recommender {
    #[module(rename = "word_embeddings")]
    words: Embedding,
    tables: Vec<EmbeddingBag>,
    #[module(flatten)]
    flat: Inner,
    head: Linear,
}

#[derive(Modules)]
struct Inner {
    kinds: Option<Embedding>,
    absent: Option<EmbeddingBag>,
    by_name: BTreeMap<&'static str, EmbeddingBag>,
}

const NAMES: [&str; 5] = ["word_embeddings", "tables.0", "tables.1", "kinds", "by_name.country"];

fn table(rows: usize, dimension: usize, seed: u64) -> Embedding {
    Embedding::new(normal(rows * dimension, seed, 1.0), rows, dimension).unwrap()
}

fn model() -> Recommender {
    Recommender {
        words: table(11, 8, 1),
        tables: vec![EmbeddingBag::sum(table(7, 16, 2)), EmbeddingBag::mean(table(5, 4, 3)).with_last_offset()],
        flat: Inner {
            kinds: Some(table(2, 8, 4)),
            absent: None,
            by_name: BTreeMap::from([("country", EmbeddingBag::sum(table(9, 12, 5)))]),
        },
        head: Linear::new(normal(4 * 8, 6, 1.0), None, 4, 8).unwrap(),
    }
}

fn options() -> QuantizeOptions {
    QuantizeOptions::new(Int8Scheme::accurate())
}

/// Name, shape, format and bytes of each embedding, in the order of the walk.
type Contents = Vec<(String, [usize; 2], Option<EmbeddingFormat>, Vec<u8>)>;

fn contents(model: &impl Modules) -> Contents {
    let mut found = Vec::new();
    model.visit("", &mut |name, module| {
        if let Module::Embedding(embedding) = module {
            let table = embedding.table().ok();
            let bytes = table.map_or(Vec::new(), |table| table.bytes().to_vec());
            let shape = [embedding.rows(), embedding.dimension()];
            found.push((name.to_string(), shape, table.map(|table| table.format()), bytes));
        }
    });
    found
}

fn path(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("embedding-{name}-{}", std::process::id())))
        .join("model.safetensors")
}

/// A file's bytes; the folder is removed again.
fn saved(name: &str, model: &impl Modules) -> Vec<u8> {
    let path = path(name);
    save_modules(model, &[], &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    bytes
}

/// The file with its header's JSON changed.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..end]).unwrap();
    change(&mut header);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[end..]].concat()
}

#[test]
fn the_derive_finds_embeddings_and_bags_in_order_with_linear_layers() {
    let mut model = model();
    let (mut all, mut again) = (Vec::new(), Vec::new());
    model.visit("", &mut |name, module| all.push((name.to_string(), matches!(module, Module::Embedding(_)))));
    model.visit_mut("", &mut |name, module| again.push((name.to_string(), matches!(module, ModuleMut::Embedding(_)))));
    assert_eq!(all, again);
    let expected: Vec<_> = NAMES.iter().map(|name| (name.to_string(), true)).collect();
    assert_eq!(all, [expected, vec![("head".to_string(), false)]].concat());
    let mut linear = Vec::new();
    model.visit_linear("", &mut |name, _| linear.push(name.to_string()));
    assert_eq!(linear, ["head"]);
    let shapes: Vec<_> = contents(&model).into_iter().map(|(_, shape, ..)| shape).collect();
    assert_eq!(shapes, [[11, 8], [7, 16], [5, 4], [2, 8], [9, 12]]);
}

#[test]
fn one_call_quantizes_tables_and_linear_layers_as_the_operators_do() {
    for format in FORMATS.into_iter().filter(|&format| format != EmbeddingFormat::Fp32) {
        let (before, mut model) = (contents(&model()), model());
        let report = quantize_modules(&mut model, &options().embeddings(format)).unwrap();
        assert!(report.quantized().map(|layer| layer.name.as_str()).eq(NAMES.into_iter().chain(["head"])));
        assert_eq!(report.embeddings, Some(format));
        assert!(report.to_string().contains(&format!("embeddings: 5 of 5 in {format}")), "{report}");
        assert!(model.head.is_quantized());
        let bag = model.tables[1].forward(&[0i64, 4, 4], &[0i64, 0, 3], None).unwrap(); // a mean, with a last offset
        let rows = model.tables[1].embedding().forward(&[0, 4]).unwrap();
        for (i, &value) in bag[4..].iter().enumerate() {
            assert_eq!(bag[i], 0.0);
            assert!((value - (rows[i] + 2.0 * rows[4 + i]) / 3.0).abs() < 1e-5, "{value}");
        }
        for ((after, before), layer) in contents(&model).iter().zip(&before).zip(&report.layers) {
            let [rows, dimension] = before.1;
            let floats: Vec<f32> = before.3.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let packed = pack_embedding(&floats, rows, dimension, format).unwrap();
            assert_eq!(after, &(before.0.clone(), before.1, Some(format), packed.bytes().to_vec()));
            assert_eq!((layer.kind, &layer.name), (LayerKind::Embedding, &before.0));
            assert_eq!((layer.out_features, layer.in_features), (rows, dimension));
            assert_eq!((layer.bytes_before, layer.bytes_after), (4 * rows * dimension, packed.bytes().len()));
            let unpacked = packed.unpack().unwrap();
            let error = |from: &[f32], to: &[f32]| {
                let square = |x: f64| x * x;
                let error: f64 = from.iter().zip(to).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
                (error / from.iter().map(|&a| square(f64::from(a))).sum::<f64>()).sqrt()
            };
            let by_row = floats.chunks(dimension).zip(unpacked.chunks(dimension)).map(|(a, b)| error(a, b));
            let about = layer.outcome.unwrap();
            assert!((about.relative_error - error(&floats, &unpacked)).abs() < 1e-12, "{about:?}");
            assert!((about.worst_row_error - by_row.fold(0.0, f64::max)).abs() < 1e-12, "{about:?}");
            assert!(about.worst_row_error > 0.0 && about.worst_row_error >= about.relative_error);
        }
    }
}

#[test]
fn tables_are_chosen_by_name_and_filter_and_stay_where_the_options_do_not_name_them() {
    use Skipped::*;
    let outcomes = |options: &QuantizeOptions| {
        let mut model = model();
        let report = quantize_modules(&mut model, options).unwrap();
        report.layers.iter().map(|layer| layer.outcome.map(drop).err()).collect::<Vec<_>>()
    };
    let int8 = || options().embeddings(EmbeddingFormat::Int8);
    assert_eq!(outcomes(&options()), [None], "the linear layer alone is chosen, and reported");
    assert_eq!(outcomes(&int8()), [None; 6]);
    let tables = int8().include("tables.*").exclude("*.1");
    let not = Some(NotIncluded);
    assert_eq!(outcomes(&tables), [not, None, Some(Excluded), not, not, not]);
    let large = int8().filter(|name, rows, _| rows > 6 || name == "head");
    assert_eq!(outcomes(&large), [None, None, Some(Filtered), Some(Filtered), None, None]);
    assert_eq!(outcomes(&int8().min_features(64)), [None, None, None, None, None, Some(TooSmall)]);
    let unused = quantize_modules(&mut model(), &int8().include("words")).unwrap_err();
    assert_eq!(unused, Error::UnusedPattern { pattern: "words".to_string() });

    let mut model = model();
    quantize_modules(&mut model, &int8().exclude("kinds")).unwrap();
    let again = quantize_modules(&mut model, &int8()).unwrap();
    let again: Vec<_> = again.layers.iter().map(|layer| layer.outcome.map(drop).err()).collect();
    let already = Some(AlreadyQuantized);
    assert_eq!(again, [already, already, already, None, already, already]);
    let third = quantize_modules(&mut model, &int8()).unwrap_err();
    assert_eq!(third, Error::NothingToQuantize { layers: 6, already: 6, transposed: 0 });
}

#[test]
fn an_unfit_table_names_itself_and_leaves_the_model_whole() {
    let refused = |last: Embedding, format| {
        let mut model = model();
        model.flat.by_name.insert("country", EmbeddingBag::sum(last));
        let before = contents(&model);
        let error = quantize_modules(&mut model, &options().embeddings(format)).unwrap_err();
        assert_eq!(contents(&model), before);
        assert!(!model.head.is_quantized());
        error.chain()
    };
    let said = "layer \"by_name.country\": dimension is 6, expected a multiple of 4 for elements of 2 bits";
    assert_eq!(refused(table(3, 6, 7), EmbeddingFormat::Int2), said);
    let said = "layer \"by_name.country\": dimension is 7, expected a multiple of 2 for elements of 4 bits";
    assert_eq!(refused(table(3, 7, 7), EmbeddingFormat::Int4), said);
    // Beyond the first piece of rows that are handled at once.
    let (rows, dimension, bad) = (300, 4096, 299 * 4096 + 5);
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let mut weight = normal(rows * dimension, 8, 1.0);
        weight[bad] = value;
        for format in [EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2] {
            let said = format!("layer \"by_name.country\": weight[{bad}] is {value}");
            let error = refused(Embedding::new(weight.clone(), rows, dimension).unwrap(), format);
            assert!(error.starts_with(&said), "{error}");
        }
    }
}

#[test]
fn an_unloaded_table_keeps_its_shape_and_a_file_brings_it_back() {
    let mut model = model();
    quantize_modules(&mut model, &options().embeddings(EmbeddingFormat::Int4)).unwrap();
    let before = contents(&model);
    let bytes = saved("unload", &model);
    unload_modules(&mut model);
    for ((name, shape, format, bytes), before) in contents(&model).iter().zip(&before) {
        assert_eq!((name, shape, format, bytes.len()), (&before.0, &before.1, &None, 0));
    }
    assert_eq!((model.words.bytes(), model.words.is_quantized()), (0, false));
    assert_eq!(model.words.forward(&[0]).unwrap_err(), Error::NotLoaded);
    assert_eq!(model.tables[0].forward(&[0], &[0], None).unwrap_err(), Error::NotLoaded);
    let not_saved = save_modules(&model, &[], path("unloaded")).unwrap_err();
    assert_eq!(not_saved.chain(), format!("layer \"word_embeddings\": {}", Error::NotLoaded));
    let nothing = quantize_modules(&mut model, &options().embeddings(EmbeddingFormat::Int8)).unwrap_err();
    assert_eq!(nothing, Error::NothingToQuantize { layers: 6, already: 0, transposed: 0 });
    load_modules(&mut model, &ModelFile::parse(&bytes).unwrap(), 2).unwrap();
    assert_eq!(contents(&model), before);
    // What a bag does with its rows is the model's own, not the file's.
    assert_eq!(model.tables[1].forward(&[0i64, 0], &[0i64, 2], None).unwrap().len(), 4);
}

#[test]
fn every_format_survives_a_file_bit_for_bit_and_is_read_where_it_lies() {
    for format in FORMATS {
        let mut original = model();
        quantize_modules(&mut original, &options().include("head").include("*").embeddings(format)).unwrap();
        let expected = contents(&original);
        let bytes = saved(&format!("round-{format}"), &original);
        let file = ModelFile::parse(&bytes).unwrap();
        let quantized = format.bits() <= 8;
        assert_eq!(file.metadata()["fbgemm_format"], if quantized { "3" } else { "2" });
        let mut listed = NAMES.map(str::to_string);
        listed.sort();
        assert!(file.embedding_tables().eq(listed.iter().filter(|_| quantized)));
        let mut loaded = model();
        unload_modules(&mut loaded);
        load_modules(&mut loaded, &file, 2).unwrap();
        assert_eq!(contents(&loaded), expected);
        let addresses = bytes.as_ptr_range();
        for (name, [rows, dimension], _, expected) in &expected {
            let about = file.metadata().get(&format!("embedding:{name}"));
            assert_eq!(about, quantized.then(|| format.to_string()).as_ref());
            let table = file.embedding_table(name).unwrap();
            assert_eq!((table.format(), table.rows(), table.dimension()), (format, *rows, *dimension));
            let inside = table.bytes().as_ptr_range();
            assert!(addresses.start < inside.start && inside.end <= addresses.end, "{name} is a copy");
            assert_eq!(table.bytes(), expected);
            let owned = file.embedding(name).unwrap();
            assert!(!addresses.contains(&owned.table().unwrap().bytes().as_ptr()));
            let indices: Vec<i64> = (0..*rows as i64).rev().collect();
            let rows = fbgemm::embedding(&table, &indices).unwrap();
            assert_eq!(bits(&rows), bits(&owned.forward(&indices).unwrap()));
        }
    }
}

#[test]
fn tables_of_older_files_and_of_other_float_types_load() {
    let exported = std::fs::read(golden("exported/model")).unwrap();
    let file = ModelFile::parse(&exported).unwrap();
    assert_eq!(file.metadata()["fbgemm_format"], "1");
    let embedding = file.embedding("embeddings.word").unwrap();
    let (_, values) = file.tensor_f32("embeddings.word.weight").unwrap();
    assert_eq!((embedding.rows(), embedding.dimension(), embedding.is_quantized()), (31, 24, false));
    assert_eq!(bits(&embedding.table().unwrap().unpack().unwrap()), bits(&values));

    let mut half = BTreeMap::from([("x", table(6, 4, 9))]);
    quantize_modules(&mut half, &options().embeddings(EmbeddingFormat::Fp16)).unwrap();
    let bytes = saved("older", &half);
    for version in ["1", "2"] {
        let older = with_header(&bytes, |header| header["__metadata__"]["fbgemm_format"] = version.into());
        let mut loaded = BTreeMap::from([("x", table(6, 4, 10))]);
        load_modules(&mut loaded, &ModelFile::parse(&older).unwrap(), 1).unwrap();
        assert_eq!(contents(&loaded), contents(&half));
    }
    // As bf16, the same bits are other numbers: widened to fp32, in memory of its own.
    let other = with_header(&bytes, |header| header["x.weight"]["dtype"] = "BF16".into());
    let file = ModelFile::parse(&other).unwrap();
    let (_, values) = file.tensor_f32("x.weight").unwrap();
    let table = file.embedding_table("x").unwrap();
    assert_eq!(table.format(), EmbeddingFormat::Fp32);
    assert_eq!(bits(&table.unpack().unwrap()), bits(&values));
}

#[test]
fn a_hostile_file_is_an_error_that_names_layer_and_row() {
    let mut model = BTreeMap::from([("a.x", table(6, 4, 11))]);
    quantize_modules(&mut model, &options().embeddings(EmbeddingFormat::Int8)).unwrap();
    let bytes = saved("hostile", &model);
    // Types and shapes are checked when the file is parsed, rows and what the model expects when it is loaded.
    let mut refused = |bytes: &[u8]| {
        let before = contents(&model);
        let error = ModelFile::parse(bytes).and_then(|file| load_modules(&mut model, &file, 1)).unwrap_err();
        assert_eq!(contents(&model), before);
        error.chain()
    };
    let mut changed = |change: &dyn Fn(&mut serde_json::Value)| refused(&with_header(&bytes, change));
    let wrong = |given: &str, format: &str| {
        format!("layer \"a.x\": tensor \"a.x.weight\" is {given}, expected U8 [rows, bytes of a row] of {format}")
    };
    let weight = |key: &'static str, value: serde_json::Value| {
        move |header: &mut serde_json::Value| header["a.x.weight"][key] = value.clone()
    };
    let word = |word: &'static str| {
        move |header: &mut serde_json::Value| header["__metadata__"]["embedding:a.x"] = word.into()
    };
    assert_eq!(changed(&weight("dtype", "BOOL".into())), wrong("BOOL [6, 12]", "int8"));
    assert_eq!(changed(&weight("shape", vec![9, 8].into())), wrong("U8 [9, 8]", "int8"));
    assert_eq!(changed(&weight("shape", vec![72, 1].into())), wrong("U8 [72, 1]", "int8"));
    let said = "layer \"a.x\": tensor \"a.x.weight\" is U8 [72], expected 2 dimensions";
    assert_eq!(changed(&weight("shape", vec![72].into())), said);
    assert_eq!(changed(&word("fp16")), wrong("U8 [6, 12]", "fp16"));
    let said = "layer \"a.x\": the embedding scheme is \"int9\", expected fp32, fp16, int8, int4 or int2";
    assert_eq!(changed(&word("int9")), said);
    let plain = changed(&|header| drop(header["__metadata__"].as_object_mut().unwrap().remove("embedding:a.x")));
    assert!(plain.starts_with("layer \"a.x\": tensor \"a.x.weight\" is U8 [6, 12], expected F32"), "{plain}");
    let gone = changed(&|header| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("a.x.weight").unwrap();
        header.insert("a.y".to_string(), tensor);
    });
    assert_eq!(gone, "layer \"a.x\": the file has no tensor \"a.x.weight\"");
    let unexpected = with_header(&bytes, |header| header["__metadata__"]["embedding:b"] = "int8".into());
    assert_eq!(refused(&unexpected), "layer \"b\": the file has no tensor \"b.weight\"");

    // Rows of 4 bits would have another length: a table of another shape, which a model of this one does not take.
    let other = with_header(&bytes, |header| word("int4")(header));
    let said = "layer \"a.x\": the file has 6x16, the model expected 6x4 (out_features x in_features)";
    assert_eq!(refused(&other), said);

    // A scale or a bias that is no number: by row at once where all are checked, else in the look-up that uses it.
    for (row, place, value) in [(0, 4, f32::NAN), (3, 8, f32::INFINITY), (5, 4, f32::NEG_INFINITY)] {
        let mut bytes = bytes.clone();
        let start = bytes.len() - (6 - row) * 12 + place;
        bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
        let error = refused(&bytes);
        assert!(error.starts_with(&format!("layer \"a.x\": row {row} of the table has scale ")), "{error}");
        let file = ModelFile::parse(&bytes).unwrap();
        let table = file.embedding_table("a.x").unwrap();
        fbgemm::embedding(&table, &[(row as i64 + 1) % 6]).unwrap();
        let used = fbgemm::embedding(&table, &[row as i64]);
        assert!(matches!(used, Err(Error::InvalidRow { row: found, .. }) if found == row));
    }
}

#[test]
fn serde_gives_an_embedding_back_and_refuses_a_damaged_one() {
    for format in FORMATS {
        let bag = EmbeddingBag::mean(table(5, 8, 12).quantize(format).unwrap()).with_last_offset().with_padding_idx(4);
        let text = serde_json::to_string(&bag).unwrap();
        let again: EmbeddingBag = serde_json::from_str(&text).unwrap();
        let (table, expected) = (again.embedding().table().unwrap(), bag.embedding().table().unwrap());
        assert_eq!((table.format(), table.rows(), table.dimension()), (format, 5, 8));
        assert_eq!(table.bytes(), expected.bytes());
        let run = |bag: &EmbeddingBag| bits(&bag.forward(&[1, 4, 2], &[0, 2, 3], None).unwrap());
        assert_eq!(run(&again), run(&bag));
    }
    let unloaded = Embedding::Unloaded { rows: 3, dimension: 4 };
    let again: Embedding = serde_json::from_str(&serde_json::to_string(&unloaded).unwrap()).unwrap();
    assert!(matches!(again, Embedding::Unloaded { rows: 3, dimension: 4 }));

    let stored = serde_json::to_value(table(3, 4, 13).quantize(EmbeddingFormat::Int8).unwrap()).unwrap();
    let refused = |key: &str, value: serde_json::Value| {
        let mut stored = stored.clone();
        stored[key] = value;
        serde_json::from_value::<Embedding>(stored).unwrap_err().to_string()
    };
    assert_eq!(refused("version", 2.into()), "the embedding has layout version 2, expected 1");
    assert!(refused("format", "int9".into()).contains("\"int9\", expected fp32, fp16, int8, int4 or int2"));
    assert!(refused("format", "int4".into()).contains("expected 18"), "rows of 4 bits are shorter");
    assert!(refused("rows", 4.into()).contains("expected 48"));
    assert!(refused("dimension", 0.into()).contains("dimension"));
    assert!(refused("other", 1.into()).contains("unknown field `other`"));
    let mut bytes = stored["table"].clone();
    for (place, byte) in f32::NAN.to_le_bytes().into_iter().enumerate() {
        bytes[12 + 4 + place] = byte.into();
    }
    assert!(refused("table", bytes).starts_with("row 1 of the table has scale NaN"));
}
