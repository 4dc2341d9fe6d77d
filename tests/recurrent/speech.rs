//! Three public speech models, against what they give in their original form (tests/golden/make_speech.py).

use crate::quantized;
use fbgemm::{Int8Scheme, LinearScheme, ModelFile, QuantizeOptions, quantize_modules};
use fbgemm_testkit::compare::cosine;
use fbgemm_testkit::files::{empty_folder, golden_folder};
use fbgemm_testkit::speech::{G2p, Listening, MELS, Vad, VoiceEncoder, conversation, mel_spectrum, read_wav};
use std::path::{Path, PathBuf};

/// This process's own: others, limited to lesser instruction sets, run the same tests meanwhile.
fn folder(name: &str) -> PathBuf {
    empty_folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("speech-{name}-{}", std::process::id())))
}

fn stored(name: &str, tensor: &str) -> Vec<f32> {
    ModelFile::open(golden_folder().join("speech").join(name)).unwrap().tensor_f32(tensor).unwrap().1
}

/// silero-vad on a conversation of 30 seconds. The distance that int8 may have to the original, in probability, is 0.02
/// in each window and 0.001 on average, and of 937 windows 5 at most may be decided otherwise.
#[test]
fn the_voice_activity_detector_hears_what_the_original_hears() {
    let expected = stored("vad.safetensors", "probabilities");
    let sound = read_wav(&conversation().unwrap()).unwrap();
    let model = Vad::load().unwrap();
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    for (name, model, worst_allowed, mean_allowed) in [
        ("fp32", model.clone(), 2e-5, 1e-6),
        ("fp16", quantized(&model, LinearScheme::Fp16), 2e-3, 1e-4),
        // Without VNNI sums of eight bits saturate.
        (
            "int8",
            quantized(&model, Int8Scheme::accurate()),
            if exact { 0.02 } else { 0.3 },
            if exact { 0.001 } else { 0.01 },
        ),
        ("int8, portable", quantized(&model, Int8Scheme::portable()), 0.08, 0.002),
    ] {
        let mut state = Listening::default();
        let heard: Vec<f32> =
            sound.chunks_exact(Vad::WINDOW).map(|window| model.hear(window, &mut state).unwrap()).collect();
        assert_eq!(heard.len(), expected.len());
        let distances = || heard.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let (worst, mean) = (distances().fold(0.0, f32::max), distances().sum::<f32>() / heard.len() as f32);
        let otherwise = heard.iter().zip(&expected).filter(|(a, b)| (**a > 0.5) != (**b > 0.5)).count();
        println!("{name}: worst {worst:.6}, mean {mean:.7}, {otherwise} of {} decided otherwise", heard.len());
        assert!(worst <= worst_allowed && mean <= mean_allowed, "{name}: worst {worst}, mean {mean}");
        assert!(otherwise <= if name == "fp32" { 0 } else { 5 }, "{name}: {otherwise} decided otherwise");
    }
}

#[test]
fn letters_become_the_phonemes_that_the_original_writes() {
    let text = std::fs::read_to_string(golden_folder().join("speech/g2p.tsv")).unwrap();
    let words: Vec<(&str, &str)> = text.lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(words.len(), 501);
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let model = G2p::load(&folder("g2p")).unwrap();
    for (name, model, least) in [
        ("fp32", model.clone(), 501),
        ("fp16", quantized(&model, LinearScheme::Fp16), 501),
        // Eight bits of both: without VNNI sums saturate, and more words change.
        ("accurate", quantized(&model, Int8Scheme::accurate()), if exact { 499 } else { 400 }),
        ("portable", quantized(&model, Int8Scheme::portable()), 495),
    ] {
        let same = words.iter().filter(|(word, phonemes)| {
            let ours: Vec<String> = model.phonemes(word).unwrap().iter().map(i64::to_string).collect();
            ours.join(" ") == **phonemes
        });
        let same = same.count();
        println!("{name}: {same} of {} words unchanged", words.len());
        assert!(same >= least, "{name}: {same} words");
    }
}

/// resemblyzer, whose vector of a speaker is the mean of those of pieces. What goes in is power, not its logarithm: its
/// channels are up to a thousandfold apart, which 8 bits for a row cannot hold, so that the matrix that takes it in stays in
/// fp32, 2 % of the weights. (PyTorch's quantize_dynamic, by one range for all, comes to a cosine of 0.70 with this sound.)
#[test]
fn voices_get_the_vectors_that_the_original_gives_them() {
    let expected = stored("voices.safetensors", "vectors");
    let expected: Vec<Vec<f32>> = expected.chunks(256).map(<[f32]>::to_vec).collect();
    let spectrum = mel_spectrum(&read_wav(&conversation().unwrap()).unwrap());
    let frames: Vec<&[f32]> = spectrum.chunks(MELS).collect();
    let pieces: Vec<f32> = frames.windows(VoiceEncoder::FRAMES).step_by(240).flat_map(|piece| piece.concat()).collect();
    let model = VoiceEncoder::load(&folder("voices")).unwrap();
    let but_for_the_first = |scheme: Int8Scheme| {
        let mut model = model.clone();
        quantize_modules(&mut model, &QuantizeOptions::new(scheme).exclude("lstm.weight_ih_l0")).unwrap();
        model
    };
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let mean = |vectors: &[Vec<f32>]| -> Vec<f32> {
        let sum: Vec<f32> = (0..vectors[0].len()).map(|i| vectors.iter().map(|vector| vector[i]).sum()).collect();
        let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        sum.iter().map(|x| x / norm).collect()
    };
    for (name, model, least) in [
        ("fp32", model.clone(), 0.999999),
        ("fp16", quantized(&model, LinearScheme::Fp16), 0.9999),
        ("accurate", but_for_the_first(Int8Scheme::accurate()), 0.999),
        ("portable", but_for_the_first(Int8Scheme::portable()), 0.995),
        ("accurate, all of it", quantized(&model, Int8Scheme::accurate()), 0.97),
    ] {
        let vectors = model.vectors(&pieces).unwrap();
        assert_eq!(vectors.len(), expected.len());
        let worst = vectors.iter().zip(&expected).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
        let of_speaker = cosine(&mean(&vectors), &mean(&expected));
        println!("{name}: cosine {of_speaker:.6}, of single pieces at least {worst:.6}");
        // Without VNNI sums of eight bits saturate.
        assert!(of_speaker >= least || !exact && name.starts_with("accurate"), "{name}: {of_speaker}");
    }
}
