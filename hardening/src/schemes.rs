//! Schemes and layers from text and from serialized form: what is taken holds what its constructors promise.

use crate::mutate;
use arbitrary::{Result, Unstructured};
use fbgemm::{
    Activations, Embedding, EmbeddingFormat, InputScheme, Int8Scheme, Linear, LinearScheme, Lstm, LstmCell,
    Nonlinearity, PortableLinear, RnnCell, WeightScheme,
};
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::OnceLock;

/// Words that schemes are made of.
const WORDS: [&str; 26] = [
    "per_tensor",
    "per_channel",
    "per_row",
    "symmetric",
    "reduce_range",
    "static",
    "fixed",
    "int8",
    "fp16",
    "fp32",
    "int4",
    "int2",
    "accurate",
    "portable",
    "pytorch",
    "weights",
    "inputs",
    ",",
    " ",
    "0.1",
    "3",
    "1e-45",
    "nan",
    "256",
    "-1",
    "as_linear_dynamic",
];

/// Text to schemes, and JSON of real layers, changed, to layers.
pub fn schemes(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut work = || -> Result<()> {
        if u.arbitrary()? {
            let mut text = String::new();
            for _ in 0..u.int_in_range(1..=8)? {
                text += if u.ratio(1, 8)? { u.arbitrary()? } else { u.choose(&WORDS)? };
                if u.ratio(2, 3)? {
                    text.push(' ');
                }
            }
            from_text(text.trim());
            return Ok(());
        }
        let (kind, json) = u.choose(layers())?;
        let json = mutate::json_text(json, &mut u)?;
        from_json(kind, &json);
        Ok(())
    };
    let _ = work();
}

fn from_text(text: &str) {
    fn twice<T: FromStr + Display + PartialEq + Debug>(text: &str) {
        let Ok(value) = text.parse::<T>() else { return };
        let said = value.to_string();
        match said.parse::<T>() {
            Ok(again) => assert_eq!(again, value, "{text:?}, said as {said:?}"),
            Err(_) => panic!("{text:?} is read, and what it says of itself, {said:?}, is not"),
        }
    }
    twice::<InputScheme>(text);
    twice::<WeightScheme>(text);
    twice::<EmbeddingFormat>(text);
    let _ = (text.parse::<Int8Scheme>(), text.parse::<LinearScheme>(), text.parse::<Activations>());
}

/// The JSON of real values, by what they are.
fn layers() -> &'static [(&'static str, String)] {
    static LAYERS: OnceLock<Vec<(&str, String)>> = OnceLock::new();
    LAYERS.get_or_init(|| {
        let values = |n: usize| -> Vec<f32> { (0..n).map(|i| (i * 31 % 251) as f32 / 125.0 - 1.0).collect() };
        let weight = fbgemm::quantize_weight(&values(12), 3, 4).unwrap();
        let channels = fbgemm::quantize_weight_as(&values(12), 3, 4, WeightScheme::new().per_channel()).unwrap();
        let portable = PortableLinear::new(channels.clone(), Some(values(3))).unwrap();
        let cell = || LstmCell::new(linear(values(24), 8, 3), linear(values(16), 8, 2)).unwrap();
        let rnn = RnnCell::new(linear(values(6), 2, 3), linear(values(4), 2, 2), Nonlinearity::Tanh).unwrap();
        let embedding = Embedding::new(values(32), 4, 8).unwrap();
        let static_input = InputScheme::new().static_params(0.1, 3).unwrap();
        fn json<T: serde::Serialize>(value: &T) -> String {
            serde_json::to_string(value).unwrap()
        }
        vec![
            ("input", json(&InputScheme::new().per_row())),
            ("input", json(&static_input)),
            ("weights", json(&WeightScheme::new().per_channel().symmetric())),
            ("int8", json(&Int8Scheme::accurate())),
            ("scheme", json(&LinearScheme::Fp16)),
            ("scheme", json(&LinearScheme::from(Int8Scheme::portable()))),
            ("activations", json(&Activations::portable())),
            ("portable", json(&portable)),
            ("portable", json(&PortableLinear::new(weight, None).unwrap())),
            ("linear", json(&Linear::from(portable.clone().pack().unwrap()))),
            ("linear", json(&linear(values(12), 3, 4))),
            ("linear", json(&Linear::from(fbgemm::Fp16Linear::new(&values(12), None, 3, 4).unwrap()))),
            ("embedding", json(&embedding)),
            ("embedding", json(&embedding.quantize(EmbeddingFormat::Int4).unwrap())),
            ("lstm", json(&Lstm::new(vec![cell()]).unwrap())),
            ("rnn", json(&rnn)),
        ]
    })
}

fn linear(weight: Vec<f32>, n: usize, k: usize) -> Linear {
    Linear::new(weight, None, n, k).unwrap()
}

fn from_json(kind: &str, json: &[u8]) {
    match kind {
        "input" => {
            if let Ok(scheme) = serde_json::from_slice::<InputScheme>(json) {
                from_text(&scheme.to_string());
            }
        }
        "weights" => {
            if let Ok(scheme) = serde_json::from_slice::<WeightScheme>(json) {
                from_text(&scheme.to_string());
            }
        }
        "int8" => drop(serde_json::from_slice::<Int8Scheme>(json)),
        "scheme" => drop(serde_json::from_slice::<LinearScheme>(json)),
        "activations" => drop(serde_json::from_slice::<Activations>(json)),
        "portable" => {
            if let Ok(layer) = serde_json::from_slice::<PortableLinear>(json) {
                let data = layer.weight().data().to_vec();
                let packed = layer.weight().pack().unwrap_or_else(|e| panic!("{}", e.chain()));
                assert_eq!(packed.unpack().unwrap(), data);
                run(&layer.pack().unwrap_or_else(|e| panic!("{}", e.chain())).into());
            }
        }
        "linear" => {
            if let Ok(layer) = serde_json::from_slice::<Linear>(json) {
                run(&layer);
            }
        }
        "embedding" => {
            if let Ok(layer) = serde_json::from_slice::<Embedding>(json) {
                let last = layer.rows() as i64 - 1;
                let _ = layer.forward(&[0, last, last + 1, -1]);
            }
        }
        "lstm" => {
            if let Ok(lstm) = serde_json::from_slice::<Lstm>(json)
                && let (Ok(mut h), Ok(mut c)) = (lstm.zero_state(2), lstm.zero_state(2))
            {
                let _ = lstm.forward(&vec![0.5; 4 * lstm.input_size()], &mut h, &mut c);
            }
        }
        _ => {
            if let Ok(cell) = serde_json::from_slice::<RnnCell>(json) {
                let _ = cell.forward(&vec![0.5; cell.input_size()], &mut vec![0.5; cell.hidden_size()]);
            }
        }
    }
}

fn run(layer: &Linear) {
    if let Ok(output) = layer.forward(&vec![0.5f32; layer.in_features()]) {
        assert_eq!(output.len(), layer.out_features());
    }
}
