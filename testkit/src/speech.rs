//! Three public speech models whose recurrent layers are fp32 or quantized: silero-vad, which hears whether someone speaks;
//! g2p-en, letters to phonemes; and resemblyzer, a voice to a vector. And a conversation to try them on.

use crate::fetch;
use fbgemm::{Activations, Embedding, FloatLinear, GruCell, Linear, Lstm, LstmCell, ModelFile, Modules};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Samples a second of all sounds here.
pub const RATE: usize = 16_000;

/// A pinned item's folder in the cache.
///
/// # Errors
/// Why it can't be had.
fn item(name: &str) -> Result<PathBuf, String> {
    fetch::item(name, &mut |_, _| {})
}

/// Two people's conversation of 30 seconds, the sample of pyannote.audio.
///
/// # Errors
/// Why it can't be had.
pub fn conversation() -> Result<PathBuf, String> {
    Ok(item("conversation")?.join("pyannote/audio/sample/sample.wav"))
}

/// The samples of a WAV file of one channel, [`RATE`] and 16 bits, -1 to 1.
///
/// # Errors
/// What is wrong with the file.
pub fn read_wav(path: &Path) -> Result<Vec<f32>, String> {
    let about = |e: hound::Error| format!("{}: {e}", path.display());
    let reader = hound::WavReader::open(path).map_err(about)?;
    let spec = reader.spec();
    if (spec.channels, spec.sample_rate as usize, spec.bits_per_sample) != (1, RATE, 16) {
        return Err(format!("{}: {spec:?}, expected one channel, {RATE} samples a second, 16 bits", path.display()));
    }
    reader.into_samples::<i16>().map(|sample| Ok(f32::from(sample.map_err(about)?) / 32768.0)).collect()
}

/// Writes a model of g2p-en or resemblyzer as safetensors.
fn converted(kind: &str, from: &Path, to: &Path) -> Result<ModelFile<'static>, String> {
    const SCRIPT: &str = include_str!("speech.py");
    let mut command = Command::new("python3");
    let output = command.args(["-c", SCRIPT, kind]).args([from, to]).output().map_err(|e| format!("python3: {e}"))?;
    if !output.status.success() {
        return Err(format!("{}: {}", from.display(), String::from_utf8_lossy(&output.stderr)));
    }
    ModelFile::open(to).map_err(|e| e.chain())
}

/// silero-vad 6.2.3 for 16 kHz: a spectrum, four convolutions and an LSTM cell; the names are the checkpoint's.
#[derive(Clone, Modules)]
pub struct Vad {
    /// The one layer that has a state.
    pub lstm_cell: LstmCell,
    #[module(skip)]
    spectrum: Convolution,
    #[module(skip)]
    convolutions: Vec<Convolution>,
    #[module(skip)]
    last: Convolution,
}

/// What a [`Vad`] has heard.
#[derive(Clone)]
pub struct Listening {
    /// The last samples, before those to come.
    context: [f32; Vad::CONTEXT],
    h: [f32; Vad::HIDDEN],
    c: [f32; Vad::HIDDEN],
}

impl Default for Listening {
    fn default() -> Self {
        Self { context: [0.0; Vad::CONTEXT], h: [0.0; Vad::HIDDEN], c: [0.0; Vad::HIDDEN] }
    }
}

impl Vad {
    /// Samples that are heard at once.
    pub const WINDOW: usize = 512;
    const CONTEXT: usize = 64;
    const HIDDEN: usize = 128;

    /// Fetched where it isn't there.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn load() -> Result<Self, String> {
        let path = item("vad")?.join("silero_vad/data/silero_vad_16k.safetensors");
        let file = ModelFile::open(path).map_err(|e| e.chain())?;
        let open = || -> fbgemm::Result<Self> {
            let convolution = |name: &str, stride, padding| Convolution::load(&file, name, stride, padding);
            let strides = [("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)];
            Ok(Self {
                lstm_cell: file.lstm_cell("lstm_cell")?,
                spectrum: convolution("stft_conv", 128, 0)?,
                convolutions: strides
                    .map(|(name, stride)| convolution(name, stride, 1))
                    .into_iter()
                    .collect::<Result<_, _>>()?,
                last: convolution("final_conv", 1, 0)?,
            })
        };
        open().map_err(|e| e.chain())
    }

    /// The probability that someone speaks in the next [`WINDOW`](Self::WINDOW) samples.
    ///
    /// # Errors
    /// Those of the layers.
    ///
    /// # Panics
    /// For another number of samples.
    pub fn hear(&self, samples: &[f32], so_far: &mut Listening) -> fbgemm::Result<f32> {
        assert_eq!(samples.len(), Self::WINDOW);
        let mut x = [&so_far.context[..], samples].concat();
        so_far.context.copy_from_slice(&samples[Self::WINDOW - Self::CONTEXT..]);
        let end = x.len() - 2;
        x.extend((0..64).map(|i| x[end - i]).collect::<Vec<_>>()); // reflected
        let parts = self.spectrum.forward(&x)?;
        // Real parts of all frequencies, then imaginary ones.
        let (real, imaginary) = parts.split_at(parts.len() / 2);
        let mut x: Vec<f32> = real.iter().zip(imaginary).map(|(a, b)| (a * a + b * b).sqrt()).collect();
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?;
            x.iter_mut().for_each(|x| *x = x.max(0.0));
        }
        self.lstm_cell.forward(&x, &mut so_far.h, &mut so_far.c)?;
        let mut answer = self.last.forward(&so_far.h.map(|x| x.max(0.0)))?;
        Activations::portable().sigmoid(&mut answer)?;
        Ok(answer[0])
    }
}

/// A convolution over time, as a linear layer over the steps that its kernel covers.
#[derive(Clone)]
struct Convolution {
    linear: FloatLinear,
    channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Convolution {
    fn load(file: &ModelFile, name: &str, stride: usize, padding: usize) -> fbgemm::Result<Self> {
        let (shape, weight) = file.tensor_f32(&format!("{name}.weight"))?;
        let bias = file.tensor_f32(&format!("{name}.bias")).ok().map(|(_, bias)| bias);
        let (channels, kernel) = (shape[1], shape[2]);
        let linear = FloatLinear::new(weight, bias, shape[0], channels * kernel)?;
        Ok(Self { linear, channels, kernel, stride, padding })
    }

    /// \[channels, time\] in and out.
    fn forward(&self, x: &[f32]) -> fbgemm::Result<Vec<f32>> {
        let Self { channels, kernel, stride, padding, .. } = *self;
        let time = x.len() / channels;
        let steps = (time + 2 * padding - kernel) / stride + 1;
        let at = |channel: usize, step: usize, i: usize| match (step * stride + i).checked_sub(padding) {
            Some(t) if t < time => x[channel * time + t],
            _ => 0.0,
        };
        let mut rows = Vec::with_capacity(steps * channels * kernel);
        for step in 0..steps {
            for channel in 0..channels {
                rows.extend((0..kernel).map(|i| at(channel, step, i)));
            }
        }
        let y = self.linear.forward(&rows)?;
        let outputs = self.linear.out_features();
        Ok((0..outputs)
            .flat_map(|output| (0..steps).map(move |step| (step, output)))
            .map(|(s, o)| y[s * outputs + o])
            .collect())
    }
}

/// g2p-en 2.1.0: a GRU that reads a word's letters, and one that writes its phonemes.
#[derive(Clone, Modules)]
pub struct G2p {
    #[module(skip)]
    graphemes: Embedding,
    #[module(skip)]
    phonemes: Embedding,
    encoder: GruCell,
    decoder: GruCell,
    head: Linear,
}

impl G2p {
    /// Fetched where it isn't there; a file is made in `folder`.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let file = converted("g2p", &item("g2p")?.join("g2p_en/checkpoint20.npz"), &folder.join("g2p.safetensors"))?;
        let open = || -> fbgemm::Result<Self> {
            Ok(Self {
                graphemes: file.embedding("graphemes")?,
                phonemes: file.embedding("phonemes")?,
                encoder: file.gru_cell("encoder")?,
                decoder: file.gru_cell("decoder")?,
                head: file.linear("head")?,
            })
        };
        open().map_err(|e| e.chain())
    }

    /// The numbers of a word's phonemes; the word has the letters a to z.
    ///
    /// # Errors
    /// Those of the layers.
    pub fn phonemes(&self, word: &str) -> fbgemm::Result<Vec<i64>> {
        const END_OF_WORD: i64 = 2;
        const START: i64 = 2;
        const END: i64 = 3;
        let mut h = vec![0.0; self.encoder.hidden_size()];
        let letters = word.bytes().map(|letter| i64::from(letter - b'a') + 3);
        for letter in letters.chain([END_OF_WORD]) {
            self.encoder.forward(&self.graphemes.forward(&[letter])?, &mut h)?;
        }
        let (mut last, mut found) = (START, Vec::new());
        while found.len() < 20 {
            self.decoder.forward(&self.phonemes.forward(&[last])?, &mut h)?;
            let scores: Vec<f32> = self.head.forward(&h)?;
            let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            last = best.map_or(END, |(i, _)| i as i64);
            if last == END {
                break;
            }
            found.push(last);
        }
        Ok(found)
    }
}

/// resemblyzer 0.1.4: three layers of an LSTM over a spectrum, whose last state becomes a vector of the voice.
#[derive(Clone, Modules)]
pub struct VoiceEncoder {
    lstm: Lstm,
    linear: Linear,
}

impl VoiceEncoder {
    /// Frames of a spectrum, of 10 ms, that make a piece.
    pub const FRAMES: usize = 160;

    /// Fetched where it isn't there; a file is made in `folder`.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let from = item("voices")?.join("resemblyzer/pretrained.pt");
        let file = converted("voices", &from, &folder.join("voices.safetensors"))?;
        let open = || Ok(Self { lstm: file.lstm("lstm")?.with_batch_first(), linear: file.linear("linear")? });
        open().map_err(|e: fbgemm::Error| e.chain())
    }

    /// The vectors, of length 1, of pieces of [`FRAMES`](Self::FRAMES) frames of [`mel_spectrum`].
    ///
    /// # Errors
    /// Those of the layers.
    pub fn vectors(&self, pieces: &[f32]) -> fbgemm::Result<Vec<Vec<f32>>> {
        let count = pieces.len() / (Self::FRAMES * MELS);
        let (mut h, mut c) = (self.lstm.zero_state(count)?, self.lstm.zero_state(count)?);
        self.lstm.forward(pieces, &mut h, &mut c)?;
        let last = &h[2 * count * self.lstm.hidden_size()..];
        let of_piece = |raw: &[f32]| {
            let raw: Vec<f32> = raw.iter().map(|x| x.max(0.0)).collect();
            let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
            raw.iter().map(|x| x / norm).collect()
        };
        Ok(self.linear.forward(last)?.chunks(self.linear.out_features()).map(of_piece).collect())
    }
}

/// Channels of [`mel_spectrum`].
pub const MELS: usize = 40;

/// Power in [`MELS`] channels up to 8 kHz for each 10 ms, as librosa's `melspectrogram` with windows of 25 ms has it; the
/// sound is brought to -30 dB first, as resemblyzer asks.
pub fn mel_spectrum(samples: &[f32]) -> Vec<f32> {
    const WINDOW: usize = 400;
    const STEP: usize = 160;
    const BINS: usize = WINDOW / 2 + 1;
    use std::f64::consts::TAU;
    let power = samples.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / samples.len() as f64;
    let gain = 10f64.powf((-30.0 - 10.0 * power.log10()) / 20.0);
    let to_hz =
        |mel: f64| if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() };
    let top = 15.0 + 8f64.ln() / (6.4f64.ln() / 27.0);
    let edges: Vec<f64> = (0..MELS + 2).map(|i| to_hz(top * i as f64 / (MELS + 1) as f64)).collect();
    let filter = |mel: usize, bin: usize| {
        let hz = (bin * RATE) as f64 / WINDOW as f64;
        let [low, middle, high] = [edges[mel], edges[mel + 1], edges[mel + 2]];
        ((hz - low) / (middle - low)).min((high - hz) / (high - middle)).max(0.0) * 2.0 / (high - low)
    };
    let waves: Vec<(f64, f64)> = (0..WINDOW).map(|i| (TAU * i as f64 / WINDOW as f64).sin_cos()).collect();
    let mut spectrum = Vec::new();
    for start in (0..=samples.len()).step_by(STEP) {
        let sample =
            |i: usize| (start + i).checked_sub(WINDOW / 2).and_then(|i| samples.get(i)).copied().unwrap_or(0.0);
        let window: Vec<f64> = (0..WINDOW).map(|i| f64::from(sample(i)) * gain * (0.5 - 0.5 * waves[i].1)).collect();
        let bins: Vec<f64> = (0..BINS)
            .map(|bin| {
                let parts = window.iter().enumerate().fold((0.0, 0.0), |(re, im), (i, x)| {
                    let (sine, cosine) = waves[i * bin % WINDOW];
                    (re + x * cosine, im + x * sine)
                });
                parts.0 * parts.0 + parts.1 * parts.1
            })
            .collect();
        spectrum.extend((0..MELS).map(|mel| (0..BINS).map(|bin| filter(mel, bin) * bins[bin]).sum::<f64>() as f32));
    }
    spectrum
}
