//! Files that are truncated, altered or made to harm: an error that names the layer, never a crash.

use crate::folder;
use fbgemm::{Error, Int8Scheme, Linear, ModelFile, QuantizeOptions, quantize_checkpoint, quantize_modules};
use fbgemm_testkit::files::golden;
use fbgemm_testkit::random::normal;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Layers "a" (6x10, with a bias) and "b" (3x4), quantized, and "c" in fp32.
fn saved(name: &str) -> Vec<u8> {
    let path = folder(name).join("model.safetensors");
    let layer = |n, k, bias| Linear::new(normal(n * k, 1, 1.0), bias, n, k).unwrap();
    let mut model = BTreeMap::from([
        ("a", layer(6, 10, Some(normal(6, 2, 1.0)))),
        ("b", layer(3, 4, None)),
        ("c", layer(2, 2, None)),
    ]);
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch()).exclude("c")).unwrap();
    fbgemm::save_modules(&model, &[], &path).unwrap();
    std::fs::read(&path).unwrap()
}

/// A file of this header and so much data.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn parts(bytes: &[u8]) -> (String, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (String::from_utf8(bytes[8..8 + length].to_vec()).unwrap(), &bytes[8 + length..])
}

/// Everything that a program may do with a file.
fn use_all(bytes: &[u8]) -> fbgemm::Result<()> {
    let file = ModelFile::parse(bytes)?;
    let mut result = file.load_quantized(1).map(drop);
    for name in file.tensor_names() {
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
        let read = file.describe(name).map(drop);
        let read = read
            .and_then(|()| file.linear(layer))
            .and_then(|layer| layer.forward(&vec![0.5f32; layer.in_features()]).map(drop));
        result = result.and(read);
        let _ = (file.tensor_f32(name), file.portable(layer));
    }
    let _ = quantize_checkpoint(&file, &QuantizeOptions::new(Int8Scheme::pytorch()).into(), None, &mut |_, _| {
        ControlFlow::Continue(())
    });
    result
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let whole = saved("cut");
    use_all(&whole).unwrap();
    for length in 0..whole.len() {
        let error = use_all(&whole[..length]).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }), "{length}: {error}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(use_all(&longer), Err(Error::InvalidFile { .. })));
}

#[test]
fn a_changed_header_is_an_error_that_names_the_layer() {
    let whole = saved("header");
    let (header, data) = parts(&whole);
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut header = serde_json::from_str(&header).unwrap();
        change(&mut header);
        use_all(&with_header(&header.to_string(), data)).unwrap_err().chain()
    };
    let set = |tensor: &str, key: &str, value: serde_json::Value| refused(&|h| h[tensor][key] = value.clone());
    for version in ["5", "x", "", "0"] {
        let said = format!("the file has format version {version:?}, expected at most 4: read it with a newer version");
        assert_eq!(set("__metadata__", "fbgemm_format", version.into()), said);
    }
    let shape = |n: usize, k: usize| vec![n, k].into();
    for (tensor, key, value, said) in [
        ("a.weight", "dtype", "U8".into(), r#"layer "a": tensor "a.weight" is U8 [6, 10], expected I8 [6, 10]"#),
        ("a.weight", "shape", shape(10, 6), r#"layer "a": tensor "a.col_offsets" is I32 [6], expected I32 [10]"#),
        ("a.weight", "shape", vec![60].into(), r#"layer "a": tensor "a.weight" is I8 [60], expected 2 dimensions"#),
        ("a.weight", "shape", shape(6, 11), "not a usable safetensors file"),
        ("a.scale", "dtype", "I32".into(), r#"layer "a": tensor "a.scale" is I32 [1], expected F32 [1]"#),
        ("a.scale", "shape", Vec::<usize>::new().into(), r#"layer "a": tensor "a.scale" is F32 [], expected F32 [1]"#),
        ("a.zero_point", "dtype", "F32".into(), r#"layer "a": tensor "a.zero_point" is F32 [1], expected I32 [1]"#),
        ("b.scale", "shape", vec![3].into(), "not a usable safetensors file"),
        ("b.col_offsets", "shape", shape(1, 3), r#"layer "b": tensor "b.col_offsets" is I32 [1, 3], expected I32 [3]"#),
        ("a.bias", "dtype", "I32".into(), r#"layer "a": tensor "a.bias" is I32 [6], expected F32 [6]"#),
    ] {
        let error = set(tensor, key, value);
        assert!(error.contains(said), "{tensor} {key}: {error}");
    }
    let input = set("__metadata__", "input:b", "per_column".into());
    assert!(input.starts_with(r#"layer "b": the input scheme is "per_column", expected per_tensor"#), "{input}");
    let input = set("__metadata__", "input:b", "fixed 0 3".into());
    assert_eq!(input, r#"layer "b": scale is 0, expected a positive finite number"#);
    for missing in ["a.weight", "a.scale", "a.zero_point", "a.col_offsets"] {
        let error = refused(&|header| {
            let tensor = header.as_object_mut().unwrap().remove(missing).unwrap();
            header["other"] = tensor;
        });
        assert_eq!(error, format!(r#"layer "a": the file has no tensor "{missing}""#));
    }
    for (other, twice) in [("b.weight", "a.weight"), ("b.zero_point", "a.zero_point"), ("c.weight", "a.bias")] {
        let header = header.replace(&format!("{other:?}:"), &format!("{twice:?}:"));
        let error = use_all(&with_header(&header, data)).unwrap_err().chain();
        assert!(error.contains(&format!("it has the name {twice:?} twice")), "{error}");
    }
}

#[test]
fn changed_numbers_are_an_error_that_names_the_layer() {
    let whole = saved("numbers");
    let start = 8 + parts(&whole).0.len();
    let place = |name: &str| {
        let (_, header) = safetensors::SafeTensors::read_metadata(&whole).unwrap();
        start + header.info(name).unwrap().data_offsets.0
    };
    let changed = |name: &str, bytes: &[u8]| {
        let mut file = whole.clone();
        file[place(name)..][..bytes.len()].copy_from_slice(bytes);
        use_all(&file).unwrap_err().chain()
    };
    for scale in [f32::NAN, f32::INFINITY, 0.0, -0.5] {
        assert_eq!(
            changed("a.scale", &scale.to_le_bytes()),
            format!(r#"layer "a": scale is {scale}, expected a positive finite number"#)
        );
    }
    for zero_point in [-129, 128, i32::MIN, i32::MAX] {
        assert_eq!(
            changed("b.zero_point", &i32::to_le_bytes(zero_point)),
            format!(r#"layer "b": zero_point is {zero_point}, expected -128 to 127"#)
        );
    }
    assert!(changed("a.col_offsets", &[0x55]).starts_with(r#"layer "a": col_offsets[0] is"#));
    let weight = whole[place("b.weight")] ^ 1;
    assert!(changed("b.weight", &[weight]).starts_with(r#"layer "b": col_offsets[0] is"#));
}

#[test]
fn sizes_that_overflow_are_an_error() {
    let tensor = |shape: &str, start: u64, end: u64| {
        let header = format!(
            r#"{{"__metadata__":{{"fbgemm_format":"1"}},"a.weight":{{"dtype":"I8","shape":{shape},"data_offsets":[{start},{end}]}}}}"#
        );
        use_all(&with_header(&header, &[0; 64])).unwrap_err()
    };
    let max = u64::MAX;
    for (shape, start, end) in [
        (format!("[{max},{max}]"), 0, 64),
        (format!("[{max},1]"), 0, max),
        ("[4294967296,4294967296]".to_string(), 0, 64),
        (format!("[{},1]", max - 7), 0, max - 7),
        (format!("[{}]", 1u64 << 63), 0, 1 << 63),
        ("[8,8]".to_string(), 0, 65),
        ("[8,8]".to_string(), max - 63, max),
        ("[8,8]".to_string(), 64, 0),
    ] {
        let error = tensor(&shape, start, end);
        assert!(matches!(error, Error::InvalidFile { .. }), "{shape}: {error}");
    }
    // Many tensors whose sizes add up to more than 64 bits hold.
    let each = 1u64 << 60;
    let tensors = (0..17u64).map(|i| {
        let (start, end) = (i.wrapping_mul(each), i.wrapping_add(1).wrapping_mul(each));
        format!(r#""{i:02}":{{"dtype":"I8","shape":[{each}],"data_offsets":[{start},{end}]}}"#)
    });
    let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    assert!(matches!(use_all(&with_header(&header, &[0; 8])), Err(Error::InvalidFile { .. })));
    // Empty, yet with one dimension beyond all limits.
    let header = format!(r#"{{"a.weight":{{"dtype":"F32","shape":[0,{max}],"data_offsets":[0,0]}}}}"#);
    assert!(use_all(&with_header(&header, &[])).unwrap_err().chain().contains("a"));
    // A header longer than the file, and than any memory.
    for length in [1u64 << 62, max, 100] {
        assert!(matches!(ModelFile::parse(&length.to_le_bytes()), Err(Error::InvalidFile { .. })));
    }
}

#[test]
fn very_many_layers_are_read_or_refused_in_reasonable_time() {
    let start = std::time::Instant::now();
    let file = |layers: usize| {
        let mut header = String::from(r#"{"__metadata__":{"fbgemm_format":"1"}"#);
        let mut end = 0;
        for i in 0..layers {
            let parts = [("weight", "I8", "[1,1]", 1), ("scale", "F32", "[1]", 4), ("zero_point", "I32", "[1]", 4)];
            for (part, dtype, shape, size) in parts.into_iter().chain([("col_offsets", "I32", "[1]", 4)]) {
                let offsets = format!("[{end},{}]", end + size);
                header += &format!(r#","{i}.{part}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#);
                end += size;
            }
        }
        header.push('}');
        with_header(&header, &vec![0; end])
    };
    // The format ends at 100 MB of header, which some 300,000 layers have: more are no file at all.
    let longer = with_header(&format!("{{{}}}", " ".repeat(100_000_000)), &[]);
    assert!(matches!(ModelFile::parse(&longer), Err(Error::InvalidFile { .. })));
    let many = file(100_000);
    let parsed = ModelFile::parse(&many).unwrap();
    assert_eq!(parsed.quantized_layers().len(), 100_000);
    // Their scales are 0: the first is named, in the order of names.
    let error = parsed.load_quantized(2).unwrap_err().chain();
    assert_eq!(error, r#"layer "0": scale is 0, expected a positive finite number"#);
    println!("{:?}", start.elapsed());
}

/// Real files with changes of all kinds: each is read or refused. A fixed seed, so that a failure comes back.
#[test]
fn mutated_files_never_crash() {
    let saved = saved("mutated");
    let exported = std::fs::read(golden("exported/model")).unwrap();
    let dynamic = std::fs::read(golden("exported/dynamic")).unwrap();
    let files = [saved, exported, dynamic];
    let config = Config { cases: 3000, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
    // Where (as a fraction of the header or of all), how, and with what.
    let change = (any::<bool>(), 0.0f64..1.0, 0u8..6, any::<u8>(), 0usize..40);
    let strategy = (0..files.len(), proptest::collection::vec(change, 1..6));
    TestRunner::new_with_rng(config, rng)
        .run(&strategy, |(which, changes)| {
            let mut file = files[which].clone();
            for (in_header, place, how, byte, length) in changes {
                let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()).min(4096) as usize;
                let end = if in_header { header.min(file.len()) } else { file.len() };
                let at = ((end as f64 * place) as usize).min(file.len().saturating_sub(1));
                let to = (at + length).min(file.len());
                match how {
                    0 => file[at] ^= 1 << (byte % 8),
                    1 => file[at] = byte,
                    2 if file.len() > 64 => drop(file.drain(at..to)),
                    3 => drop(file.splice(at..at, std::iter::repeat_n(byte, length))),
                    4 => {
                        let piece = file[at..to].to_vec();
                        let from = usize::from(byte) * file.len() / 256;
                        file.splice(from..from, piece);
                    }
                    // A digit of the header becomes another: sizes, offsets, versions.
                    _ => {
                        let digits: Vec<usize> =
                            (8..header.min(file.len())).filter(|&i| file[i].is_ascii_digit()).collect();
                        if let Some(&i) = digits.get((digits.len() as f64 * place) as usize) {
                            file[i] = b'0' + byte % 10;
                        }
                    }
                }
                if file.len() < 8 {
                    return Ok(());
                }
            }
            let _ = use_all(&file);
            // With the length of the header made right again, more of it is read.
            let end = file.iter().rposition(|&b| b == b'}').unwrap_or(8);
            let length = end.saturating_sub(7) as u64;
            file[..8].copy_from_slice(&length.to_le_bytes());
            let _ = use_all(&file);
            Ok(())
        })
        .unwrap();
}
