//! Speech in a sound: streams a WAV file, 32 ms at a time, through silero-vad with its LSTM in int8, and prints when someone
//! speaks.
//!
//!     cargo run --release --example vad [FILE.wav]
//!
//! The file has one channel, 16,000 samples a second, 16 bits; without one it is a conversation of 30 seconds. Model and
//! conversation are fetched once (11 MB and 1 MB), checked against hashes.

use fbgemm::{Int8Scheme, QuantizeOptions, quantize_modules};
use fbgemm_testkit::speech::{Listening, RATE, Vad, conversation, read_wav};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Above this probability speech begins; it goes on while it is above the other.
const BEGINS: f32 = 0.5;
const GOES_ON: f32 = 0.35;
/// So many windows without speech end it: 0.1 seconds.
const PAUSE: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = match std::env::args().nth(1) {
        Some(path) => PathBuf::from(path),
        None => conversation()?,
    };
    let mut model = Vad::load()?;
    print!("{}", quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::accurate()))?);
    let samples = read_wav(&path)?;

    let seconds = |window: usize| (window * Vad::WINDOW) as f64 / RATE as f64;
    let (mut so_far, mut began, mut quiet) = (Listening::default(), None, 0);
    let (mut windows, mut slowest) = (0, Duration::ZERO);
    let start = Instant::now();
    for window in samples.chunks_exact(Vad::WINDOW) {
        let before = Instant::now();
        let speech = model.hear(window, &mut so_far)?;
        slowest = slowest.max(before.elapsed());
        quiet = if speech < GOES_ON { quiet + 1 } else { 0 };
        match began {
            None if speech >= BEGINS => began = Some(windows),
            Some(first) if quiet == PAUSE => {
                println!("{:6.2} to {:6.2} s", seconds(first), seconds(windows + 1 - PAUSE));
                began = None;
            }
            _ => {}
        }
        windows += 1;
    }
    if let Some(first) = began {
        println!("{:6.2} to {:6.2} s", seconds(first), seconds(windows));
    }
    let took = start.elapsed().as_secs_f64();
    let (sound, each) = (seconds(windows), 1e6 * took / windows.max(1) as f64);
    println!("{sound:.1} s of sound in {took:.3} s: {each:.0} us a window of 32 ms, {slowest:.0?} the slowest");
    Ok(())
}
