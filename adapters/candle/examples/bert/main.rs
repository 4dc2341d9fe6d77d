//! all-MiniLM-L6-v2 as candle models are written, in fp32 and quantized: the cosine of its embedding to fp32's.
//!
//! `cargo run --release -p fbgemm-candle --example bert`; the first run fetches the model (84 MB).

mod model;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use fbgemm::{CheckpointOptions, EmbeddingFormat, Int8Scheme, ModelFile, QuantizeOptions, quantize_checkpoint};
use fbgemm_candle::var_builder;
use fbgemm_testkit::compare::cosine;
use fbgemm_testkit::minilm::{Files, TEXT};
use fbgemm_testkit::timing::medians;
use model::{Bert, Kind};
use std::ops::ControlFlow;
use std::time::Duration;

fn main() -> Result<()> {
    let files = Files::fetch(&mut |done, of| eprint!("\rfetching the model: {} %", done * 100 / of.max(1)))
        .map_err(candle_core::Error::msg)?;
    let bytes = std::fs::read(&files.checkpoint)?;
    let reference = files.load(&bytes).map_err(candle_core::Error::msg)?;
    let tokens = reference.tokens(TEXT);
    let ids = Tensor::from_iter(tokens.iter().map(|&token| token as u32), &Device::Cpu)?.unsqueeze(0)?;
    let vector = |model: &Bert| model.embed(&ids)?.flatten_all()?.to_vec1::<f32>();

    let vb = VarBuilder::from_slice_safetensors(&bytes, DType::F32, &Device::Cpu)?;
    let float = Bert::load(Kind::Float, vb.clone())?;
    let quantized = Bert::load(Kind::Quantized, vb)?;

    // The same code, on a file that was quantized before.
    let stored = std::env::temp_dir().join(format!("fbgemm-candle-bert-{}.safetensors", std::process::id()));
    let options = QuantizeOptions::new(Int8Scheme::accurate()).embeddings(EmbeddingFormat::Int8);
    let checkpoint = ModelFile::open(&files.checkpoint).map_err(candle_core::Error::wrap)?;
    let written = quantize_checkpoint(&checkpoint, &CheckpointOptions::from(options), Some(&stored), &mut |_, _| {
        ControlFlow::Continue(())
    });
    let read = || -> fbgemm_candle::Result<Bert> {
        written?;
        Ok(Bert::load(Kind::Quantized, var_builder(ModelFile::open(&stored)?, DType::F32))?)
    };
    let from_file = read();
    let _ = std::fs::remove_file(&stored);
    let from_file = from_file?;

    let exact = vector(&float)?;
    let other = reference.embed(&tokens, &mut |_, _| {}).map_err(candle_core::Error::wrap)?;
    println!("{} tokens; cosine to candle's fp32:", tokens.len());
    println!("  {:.6}  fp32 without candle", cosine(&other, &exact));
    let ours = vector(&quantized)?;
    println!("  {:.6}  quantized while the checkpoint was read", cosine(&ours, &exact));
    let stored = vector(&from_file)?;
    println!(
        "  {:.6}  from a file that was quantized before, {}",
        cosine(&stored, &exact),
        match stored == ours {
            true => "the same bits",
            false => "OTHER BITS",
        }
    );
    let [candle, quantized] = medians(
        21,
        Duration::ZERO,
        [&mut || drop(float.embed(&ids).unwrap()), &mut || drop(quantized.embed(&ids).unwrap())],
    );
    println!(
        "{candle:.1?} a text in fp32 on all threads, {quantized:.1?} quantized on one (attention and norms alike)"
    );
    Ok(())
}
