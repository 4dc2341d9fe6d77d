//! Error against fp32 of each way to quantize, on a real model: `cargo run --release -p fbgemm-cli --example accuracy`.
//!
//! all-MiniLM-L6-v2, every linear layer on the activations that the model itself gives it, in fp32, for a text;
//! static parameters come from another text. Then what embeddings in fewer bits cost over 200 sentences of news, from
//! file to file. Prints the tables of README.md.

use fbgemm::{
    EmbeddingFormat, InputObserver, InputScheme, Int8Scheme, Linear, ModelFile, Modules, PortableLinear,
    QuantizeOptions, WeightScheme, quantize_checkpoint, quantize_weight_as,
};
use fbgemm_testkit::compare::{cosine, relative_error};
use fbgemm_testkit::fetch;
use fbgemm_testkit::minilm::{Files, MiniLm, TEXT};
use std::ops::ControlFlow;

const CALIBRATION: &str = "The ferry leaves at nine, or when the captain has had coffee: whichever is later. Bring a coat, \
    since the wind on the upper deck is cold even in August, and something to read. On the far side there is a road, \
    two houses, and a shop that sells bread, rope and stamps.";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = Files::fetch(&mut |_, _| ())?;
    let checkpoint = std::fs::read(&files.checkpoint)?;
    let load = || files.load(&checkpoint);
    let float = load()?;
    let tokens = float.tokens(TEXT);
    let (samples, exact) = float.activations(&tokens)?;
    let (calibration, _) = float.activations(&float.tokens(CALIBRATION))?;

    println!("FBGEMM uses {}; {} tokens, calibrated on {}.\n", fbgemm::cpu_support()?, tokens.len(), {
        float.tokens(CALIBRATION).len()
    });
    println!(
        "| weights                          | inputs                  | mean error | worst error | embedding cosine |"
    );
    println!(
        "|----------------------------------|-------------------------|-----------:|------------:|-----------------:|"
    );
    let weights = [
        WeightScheme::new(),
        WeightScheme::new().per_channel(),
        WeightScheme::new().per_channel().symmetric(),
        WeightScheme::new().reduce_range(),
        WeightScheme::new().reduce_range().per_channel(),
    ];
    for scheme in weights {
        for input in
            ["per_tensor", "per_tensor reduce_range", "per_row", "per_row reduce_range", "static", "static, 99.9 %"]
        {
            let (mut model, mut errors, mut failed) = (load()?, Vec::new(), Ok(()));
            let mut layers = samples.iter().zip(&calibration);
            model.visit_linear_mut("", &mut |_, layer| {
                let (Some(((_, x), (_, calibration))), Linear::Float(float)) = (layers.next(), &*layer) else { return };
                let mut quantize = || -> fbgemm::Result<Linear> {
                    let scheme_of_input: InputScheme = match input.strip_prefix("static") {
                        None => input.parse()?,
                        Some(share) => {
                            let mut observer = InputObserver::new();
                            observer.observe(calibration)?;
                            if share.is_empty() { observer.scheme()? } else { observer.quantile_scheme(0.999)? }
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
            let cosine = cosine(&exact, &ours);
            let (mean, worst) =
                (errors.iter().sum::<f64>() / errors.len() as f64, errors.iter().fold(0.0, |a, &b| b.max(a)));
            println!("| {:<32} | {input:<23} | {mean:>10.4} | {worst:>11.4} | {cosine:>16.4} |", scheme.to_string());
        }
    }
    println!();
    embeddings(&files, &checkpoint)
}

/// Linear layers per channel and row, and embeddings in each format.
fn embeddings(files: &Files, checkpoint: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let float = files.load(checkpoint)?;
    let sentences: Vec<Vec<usize>> = sentences()?.iter().map(|sentence| float.tokens(sentence)).collect();
    let embed = |model: &MiniLm| {
        sentences.iter().map(|tokens| model.embed(tokens, &mut |_, _| ())).collect::<fbgemm::Result<Vec<_>>>()
    };
    let exact = embed(&float)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    println!("{} sentences, {:.1} MB in fp32.\n", sentences.len(), checkpoint.len() as f64 / 1e6);
    println!("| embeddings | file, MB | mean cosine | smallest cosine |");
    println!("|------------|---------:|------------:|----------------:|");
    for format in [None, Some(EmbeddingFormat::Int8), Some(EmbeddingFormat::Int4), Some(EmbeddingFormat::Int2)] {
        let options = QuantizeOptions::new(Int8Scheme::accurate());
        let options = format.into_iter().fold(options, QuantizeOptions::embeddings);
        let file = ModelFile::parse(checkpoint)?;
        quantize_checkpoint(&file, &options.into(), Some(&path), &mut |_, _| ControlFlow::Continue(()))?;
        let quantized = std::fs::read(&path)?;
        let ours = embed(&files.load(&quantized)?)?;
        let cosines: Vec<f64> = exact.iter().zip(&ours).map(|(exact, ours)| cosine(exact, ours)).collect();
        let (mean, least) =
            (cosines.iter().sum::<f64>() / cosines.len() as f64, cosines.iter().fold(1.0, |a, &b| b.min(a)));
        let (format, megabytes) = (format.unwrap_or(EmbeddingFormat::Fp32), quantized.len() as f64 / 1e6);
        println!("| {:<10} | {megabytes:>8.1} | {mean:>11.4} | {least:>15.4} |", format.to_string());
    }
    Ok(())
}

/// One sentence of each of the first news articles of gensim's Lee corpus that has one of usual length.
fn sentences() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    const COUNT: usize = 200;
    /// In words.
    const LENGTHS: std::ops::RangeInclusive<usize> = 6..=60;
    let path = fetch::item("sentences", &mut |_, _| ())?.join("gensim/test/test_data/lee_background.cor");
    let articles = std::fs::read_to_string(path)?;
    let usual = |sentence: &&str| LENGTHS.contains(&sentence.split_whitespace().count());
    let chosen = articles.lines().filter_map(|article| article.split(". ").find(usual));
    let chosen: Vec<String> =
        chosen.take(COUNT).map(|sentence| format!("{}.", sentence.trim_end_matches('.'))).collect();
    if chosen.len() < COUNT {
        return Err(format!("the corpus has {} such sentences, expected {COUNT}", chosen.len()).into());
    }
    Ok(chosen)
}
