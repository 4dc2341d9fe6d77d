//! Running a contender for a sample, and what comes before it: warm or empty caches, other threads at rest.

use super::contender::Contender;
use super::limits::{self, Block};
use super::result::Timing;
use super::threads::Crew;
use fbgemm::Isa;
use fbgemm_testkit::timing::quartiles;
use std::time::{Duration, Instant};

/// The time of some calls.
pub struct Sample {
    pub time: Duration,
    /// Whether another program had the CPU meanwhile.
    pub interrupted: bool,
}

/// A contender that is about to be timed.
pub struct Runner<'a> {
    pub name: &'a str,
    pub int8: bool,
    pub contender: Box<dyn Contender>,
    pub error: f64,
    pub pack: Option<f64>,
    /// Calls in a sample.
    pub calls: u32,
    /// Seconds for a call, of each sample.
    pub samples: Vec<f64>,
}

impl Runner<'_> {
    /// Times so many calls.
    pub fn sample(&mut self, calls: u32, input: &[f32], output: &mut [f32]) -> Result<Sample, String> {
        let start = Instant::now();
        for _ in 0..calls {
            self.contender.run(input, output).map_err(|e| format!("{} failed: {e}", self.name))?;
        }
        Ok(Sample { time: start.elapsed(), interrupted: false })
    }

    /// What came of it.
    pub fn timing(mut self) -> Timing {
        let [low, median, high] = quartiles(&mut self.samples);
        let (contender, Runner { int8, error, pack, .. }) = (self.name.to_string(), self);
        Timing { contender, int8, median, low, high, error, pack }
    }
}

/// Calls until calls get no faster: one's own data is back in the caches, which for weights of about the last one's size
/// takes many calls, and one's own threads are awake.
pub fn warm(mut call: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    const LONGEST: Duration = Duration::from_millis(20);
    let start = Instant::now();
    let mut least = Duration::MAX;
    let mut since = 0;
    while since < 3 && start.elapsed() < LONGEST {
        let before = Instant::now();
        call()?;
        let time = before.elapsed();
        since = if time < least.mul_f64(0.99) { 0 } else { since + 1 };
        least = least.min(time);
    }
    Ok(())
}

/// What comes before each sample.
pub struct Flush<'a> {
    crew: &'a Crew,
    isa: Isa,
    /// Larger than the caches, for every thread to read; empty if they shall stay warm.
    buffer: Vec<Block>,
}

impl<'a> Flush<'a> {
    /// `cold`: the caches shall be emptied.
    pub fn new(crew: &'a Crew, isa: Isa, cold: bool) -> Self {
        Self { crew, isa, buffer: limits::buffer(if cold { 2 * limits::last_cache() } else { 0 }) }
    }

    /// Empties the caches of all but the input and the output, which in a service were just used; and lets the other
    /// contenders' threads come to rest.
    pub fn before(&self, input: &[f32], output: &mut [f32]) {
        if !self.buffer.is_empty() {
            self.crew.run(&|_| limits::read(&self.buffer, self.isa));
            std::hint::black_box(input.iter().sum::<f32>());
            output.fill(0.0);
        }
        self.crew.rest();
    }
}
