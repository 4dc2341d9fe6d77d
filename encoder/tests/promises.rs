//! The same vector in every batch, at any place and with any threads; and what odd texts and broken folders give.

use fbgemm::Int8Scheme;
use fbgemm_encoder::{Encoder, EncoderOptions, Error, Tokens, Truncation};
use fbgemm_testkit::compare::bits;
use proptest::prelude::*;
use rayon::ThreadPoolBuilder;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A model with positions as BERT's, and one with a bias by distance.
fn encoders() -> &'static [Encoder; 2] {
    static ENCODERS: OnceLock<[Encoder; 2]> = OnceLock::new();
    ENCODERS.get_or_init(|| {
        ["bert-dense", "mpnet"].map(|name| Encoder::open(golden(name), &EncoderOptions::new()).unwrap())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_text_s_vector_is_the_same_in_every_batch_and_on_any_threads(
        lengths in prop::collection::vec(1..60usize, 1..40), seed in any::<u32>(), threads in 1..4usize,
    ) {
        for encoder in encoders() {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) % 100
            };
            let (mut all, mut alone) = (Tokens::new(), Vec::new());
            for &length in &lengths {
                let ids: Vec<u32> = (0..length).map(|_| next()).collect();
                all.push(&ids, &vec![0; length]);
                let mut one = Tokens::new();
                one.push(&ids, &vec![0; length]);
                let mut vector = vec![0.0; encoder.outputs()];
                let pool = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
                pool.install(|| encoder.embed_tokens(&one, &mut vector)).unwrap();
                alone.extend(vector);
            }
            let mut together = vec![f32::NAN; alone.len()];
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| encoder.embed_tokens(&all, &mut together)).unwrap();
            prop_assert_eq!(bits(&together), bits(&alone));
        }
    }
}

#[test]
fn many_threads_use_one_encoder() {
    let encoder = &encoders()[0];
    let texts = ["a", "the cat sat on the mat", ""];
    let expected = bits(&encoder.embed(&texts).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(bits(&encoder.embed(&texts).unwrap()), expected)));
        }
    });
}

#[test]
fn odd_texts_have_vectors() {
    let encoder = &encoders()[0];
    let long = "the quick brown fox ".repeat(50_000); // 1 MB
    let texts = ["", " ", "\u{0}", "\u{1F980}\u{200D}\u{FE0F}", "\u{202E}abc", "é", "e\u{301}", "[CLS] [PAD]", &long];
    let vectors = encoder.embed(&texts).unwrap();
    assert_eq!(vectors.len(), texts.len() * encoder.outputs());
    assert!(vectors.iter().all(|x| x.is_finite()));
    let tokens = encoder.tokenize(&[&long]).unwrap();
    assert_eq!(tokens.len(), encoder.max_tokens());
    assert!(encoder.embed::<&str>(&[]).unwrap().is_empty());
}

#[test]
fn texts_are_cut_where_the_options_say() {
    let text = "the cat sat on the mat ".repeat(20);
    for (asked, given) in [(4, 4), (10, 10), (1000, 64)] {
        let encoder = Encoder::open(golden("bert"), &EncoderOptions::new().max_tokens(asked)).unwrap();
        assert_eq!((encoder.tokenize(&[&text]).unwrap().len(), encoder.max_tokens()), (given, given));
    }
    for too_few in [0, 1, 2, 3] {
        let error = Encoder::open(golden("bert"), &EncoderOptions::new().max_tokens(too_few)).unwrap_err();
        assert!(matches!(error, Error::WrongTokens { given, .. } if given == too_few), "{error}");
    }
}

#[test]
fn the_caller_says_what_becomes_of_long_texts() {
    let encoder = Encoder::open(golden("bert"), &EncoderOptions::new().max_tokens(10)).unwrap();
    let whole = Encoder::open(golden("bert"), &EncoderOptions::new()).unwrap();
    let text = "the cat sat on the mat and the dog sat on the cat";
    let all = whole.tokenize(&[text]).unwrap();
    let (ids, len) = (all.ids(0), all.len());
    assert!((11..64).contains(&len), "{len}");
    let cut = |truncation| encoder.tokenize_with(&[text], truncation);
    let edges = |middle: &[u32]| [&ids[..1], middle, &ids[len - 1..]].concat();
    assert_eq!(cut(Truncation::Right).unwrap().ids(0), edges(&ids[1..9]));
    assert_eq!(cut(Truncation::Left).unwrap().ids(0), edges(&ids[len - 9..len - 1]));
    assert!(
        matches!(cut(Truncation::Refuse), Err(Error::WrongTokens { given, limit: 10, .. }) if given == len),
        "{:?}",
        cut(Truncation::Refuse)
    );
    let pair = whole.tokenize_pairs(&[(text, "a cat")], Truncation::Refuse).unwrap();
    let refused = encoder.tokenize_pairs(&[(text, "a cat")], Truncation::Refuse);
    assert!(matches!(refused, Err(Error::WrongTokens { given, .. }) if given == pair.len()), "{refused:?}");
    let exact = Encoder::open(golden("bert"), &EncoderOptions::new().max_tokens(len)).unwrap();
    assert_eq!(exact.tokenize_with(&[text], Truncation::Refuse).unwrap(), all);
    let short = ["the cat"];
    for truncation in [Truncation::Right, Truncation::Left, Truncation::Refuse] {
        let tokens = encoder.tokenize_with(&short, truncation).unwrap();
        assert_eq!(tokens, whole.tokenize(&short).unwrap(), "{truncation:?}");
    }
}

#[test]
fn tokens_that_the_model_can_not_take_are_errors() {
    let encoder = &encoders()[0];
    let run = |ids: &[u32], segments: &[u32], outputs: usize| {
        let mut tokens = Tokens::new();
        tokens.push(ids, segments);
        encoder.embed_tokens(&tokens, &mut vec![0.0; outputs])
    };
    let outputs = encoder.outputs();
    assert!(matches!(run(&[], &[], outputs), Err(Error::WrongTokens { given: 0, limit: 64, .. })));
    assert!(matches!(run(&[1; 65], &[0; 65], outputs), Err(Error::WrongTokens { given: 65, limit: 64, .. })));
    assert!(run(&[1; 64], &[1; 64], outputs).is_ok());
    assert!(matches!(run(&[9999], &[0], outputs), Err(Error::UnknownToken { given: 9999, .. })));
    assert!(matches!(run(&[1], &[2], outputs), Err(Error::UnknownSegment { given: 2, limit: 2 })));
    assert!(matches!(run(&[1], &[0], outputs + 1), Err(Error::WrongOutput { .. })));
}

/// A copy of a golden model with one file changed.
fn changed(file: &str, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    copy(&golden("bert-dense"), &path);
    let mut bytes = std::fs::read(path.join(file)).unwrap();
    change(&mut bytes);
    std::fs::write(path.join(file), bytes).unwrap();
    (folder, path)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.unwrap(), to);
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            assert!(std::fs::copy(entry.path(), to).unwrap() > 0)
        }
    }
}

fn replace(from: &'static str, to: &'static str) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let text = String::from_utf8(std::mem::take(bytes)).unwrap();
        assert!(text.contains(from), "{text}");
        *bytes = text.replace(from, to).into_bytes();
    }
}

#[test]
fn prompts_stand_before_texts_as_in_sentence_transformers() {
    let from = golden("bert-dense");
    let made: serde_json::Value = serde_json::from_slice(&std::fs::read(from.join("prompts.json")).unwrap()).unwrap();
    let config = "config_sentence_transformers.json";
    let (_kept, path) = changed(config, |bytes| *bytes = made["config"].to_string().into_bytes());
    let open = |options: EncoderOptions| Encoder::open(&path, &options.as_stored());
    for case in made["cases"].as_array().unwrap() {
        let name = case["prompt_name"].as_str();
        let options = name.map_or(EncoderOptions::new(), |name| EncoderOptions::new().prompt(name));
        let encoder = open(options).unwrap();
        assert_eq!(encoder.prompt(), if name == Some("document") { "" } else { "the brown fox: " });
        let text = case["text"].as_str().unwrap();
        let vector = encoder.embed(&[text]).unwrap();
        let numbers = case["vector"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        let off = vector.iter().zip(numbers).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-5, "{name:?} {text:?}: {off}");
    }
    // None, although there is a default; and one by name beside it.
    let encoder = open(EncoderOptions::new().prompt("")).unwrap();
    let plain = Encoder::open(&from, &EncoderOptions::new().as_stored()).unwrap();
    assert_eq!(encoder.embed(&["a fox"]).unwrap(), plain.embed(&["a fox"]).unwrap());
    assert_eq!(encoder.prompts().collect::<Vec<_>>(), [("document", ""), ("query", "the brown fox: ")]);
    let error = open(EncoderOptions::new().prompt("passage")).map(drop).unwrap_err().chain();
    assert!(error.contains("`passage`") && error.contains("document, query"), "{error}");
    // Where the prompt's tokens are not to be pooled, it is refused: silently they would be.
    let pooling = path.join("1_Pooling/config.json");
    let json = std::fs::read_to_string(&pooling).unwrap();
    assert!(json.contains("\"include_prompt\": true"), "{json}");
    std::fs::write(&pooling, json.replace("\"include_prompt\": true", "\"include_prompt\": false")).unwrap();
    let error = open(EncoderOptions::new()).map(drop).unwrap_err().chain();
    assert!(error.contains("include_prompt: false"), "{error}");
    let encoder = open(EncoderOptions::new().prompt("document")).unwrap();
    assert!(encoder.tokenize_prompted("some: ", &["a"], Truncation::Right).is_err());
}

#[test]
fn what_is_wrong_with_a_folder_is_an_error_that_names_it() {
    let none: fn(&mut Vec<u8>) = |bytes| bytes.clear();
    let word = |file: &'static str, from, to, said: &'static str| (file, changed(file, replace(from, to)), said);
    for (file, (_kept, path), said) in [
        word("config.json", "\"bert\"", "\"t5\"", "model type `t5` is not supported"),
        word("config.json", "\"gelu\"", "\"swish\"", "activation `swish`"),
        word("config.json", "\"hidden_size\": 32", "\"hidden_size\": 36", "has shape [120, 32], expected [120, 36]"),
        word("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "encoder.layer.2"),
        word("modules.json", "normalize.Normalize", "cnn.CNN", "module `sentence_transformers.base.modules.cnn.CNN`"),
        word("modules.json", "1_Pooling", "../1_Pooling", "out of the folder"),
        word("1_Pooling/config.json", "mean", "lasttoken", "pooling `lasttoken`"),
        word("2_Dense/config.json", "Tanh", "Mish", "activation of a dense module `torch"),
        ("config.json", changed("config.json", none), "config.json: no JSON"),
        ("tokenizer.json", changed("tokenizer.json", none), "tokenizer.json"),
    ] {
        let error = Encoder::open(&path, &EncoderOptions::new()).map(drop).unwrap_err();
        assert!(error.chain().contains(said), "{file}: {}", error.chain());
    }
    let error = Encoder::open("no such folder", &EncoderOptions::new()).map(drop).unwrap_err();
    assert!(matches!(&error, Error::File { .. }), "{error}");
}

#[test]
fn a_quantized_file_gives_the_bits_of_quantizing_on_opening() {
    let (_kept, path) = changed("config.json", |_| ());
    let from = golden("bert-dense");
    let expected = Encoder::open(&from, &EncoderOptions::new()).unwrap().embed(&["the cat sat"]).unwrap();
    let options = fbgemm::CheckpointOptions::new(fbgemm::QuantizeOptions::new(Int8Scheme::accurate()));
    let (file, to) = (fbgemm::ModelFile::open(&from).unwrap(), path.join("model.safetensors"));
    fbgemm::quantize_checkpoint(&file, &options, Some(&to), &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    let stored = Encoder::open(&path, &EncoderOptions::new().as_stored()).unwrap().embed(&["the cat sat"]).unwrap();
    assert_eq!(bits(&stored), bits(&expected));
}

#[test]
fn a_cache_s_snapshot_is_found() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("snapshots")).unwrap();
    copy(&golden("bert"), &folder.path().join("snapshots/0123abc"));
    let open = || Encoder::open(folder.path(), &EncoderOptions::new()).map(drop);
    open().unwrap();
    copy(&golden("mpnet"), &folder.path().join("snapshots/4567def"));
    assert!(matches!(open(), Err(Error::InvalidFile { .. })));
    std::fs::create_dir(folder.path().join("refs")).unwrap();
    std::fs::write(folder.path().join("refs/main"), "0123abc\n").unwrap();
    open().unwrap();
}
