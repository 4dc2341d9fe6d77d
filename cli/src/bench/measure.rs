//! Checks each contender, then times them in turn.

use super::contender::{Contender, Entry, Layer};
use super::limits;
use super::profile::Profiler;
use super::result::{Case, Limits, ReadLimit, Timing};
use super::runner::{Flush, Runner, Sample, warm};
use super::shapes::Shape;
use super::threads::{self, Crew, with_crew};
use super::{blas, fp32, others, ours};
use fbgemm::Isa;
use fbgemm_testkit::compare::relative_error;
use fbgemm_testkit::random::normal;
use fbgemm_testkit::reference::linear_f64;
use fbgemm_testkit::timing::{calls_in, turns};
use indicatif::ProgressBar;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to measure, and how.
pub struct Plan {
    pub shapes: Vec<Shape>,
    pub batches: Vec<usize>,
    pub threads: Vec<usize>,
    /// Samples of each contender.
    pub repetitions: usize,
    /// Without the caches' help.
    pub cold: bool,
    /// Results matter, times don't.
    pub quick: bool,
    pub isa: Isa,
    pub libraries: Vec<Arc<blas::Blas>>,
    /// The names of those that compete; this crate's is among them.
    pub contenders: Vec<String>,
}

/// All that can compete here, this crate first.
pub fn entries(crew: &Rc<Crew>, libraries: &[Arc<blas::Blas>]) -> Vec<Entry> {
    let mut entries = vec![ours::ours(crew)];
    entries.extend(ours::schemes());
    entries.extend(fp32::entries());
    entries.extend(blas::entries(libraries));
    entries.extend(others::entries());
    entries
}

/// What was found out.
pub struct Measured {
    pub cases: Vec<Case>,
    pub limits: Limits,
    /// The share of samples that other programs interrupted, where that can be told.
    pub interrupted: f64,
}

/// Measures all of it. An error is a contender's: that it is wrong, or failed.
pub fn run(plan: &Plan, bar: &ProgressBar) -> Result<Measured, String> {
    let mut limits = Limits { read: Vec::new(), int8_per_second: 0.0, fp32_per_second: 0.0 };
    let mut cases = Vec::new();
    let mut interrupted = [0; 2];
    for &threads in &plan.threads {
        bar.set_message("the machine's limits");
        with_crew(threads, |crew| {
            if limits.read.is_empty() {
                [limits.int8_per_second, limits.fp32_per_second] = limits::multiplying(plan.isa, plan.quick);
            }
            let read = limits::reading(crew, plan.isa, plan.quick);
            limits.read.extend(read.clone());
            let chosen = |entry: &Entry| plan.contenders.contains(&entry.name);
            let entries: Vec<Entry> = entries(crew, &plan.libraries).into_iter().filter(chosen).collect();
            let samples = Cell::new([0; 2]);
            let measuring = Measuring { plan, crew, entries: &entries, read: &read, limits: &limits, bar, samples };
            for (i, shape) in plan.shapes.iter().enumerate() {
                cases.extend(measuring.shape(shape)?.into_iter().enumerate().map(|(j, case)| ((i, j), case)));
            }
            let [all, of_them] = measuring.samples.get();
            interrupted = [interrupted[0] + all, interrupted[1] + of_them];
            Ok::<_, String>(())
        })??;
    }
    // By layer and batch size; the sort keeps the order of the threads.
    cases.sort_by_key(|(order, _)| *order);
    let cases = cases.into_iter().map(|(_, case)| case).collect();
    Ok(Measured { cases, limits, interrupted: interrupted[1] as f64 / interrupted[0] as f64 })
}

/// The measuring on one number of threads.
struct Measuring<'a> {
    plan: &'a Plan,
    crew: &'a Crew,
    entries: &'a [Entry],
    read: &'a [ReadLimit],
    limits: &'a Limits,
    bar: &'a ProgressBar,
    /// How many there were on one thread, and how many of them were interrupted.
    samples: Cell<[usize; 2]>,
}

impl Measuring<'_> {
    /// One shape at every batch size.
    fn shape(&self, shape: &Shape) -> Result<Vec<Case>, String> {
        let (weight, bias) = shape.values();
        let (out_features, in_features) = (shape.out_features, shape.in_features);
        let layer = Layer { weight: &weight, bias: &bias, out_features, in_features };
        // Enough outputs that their error is no accident: of a single one, the exact value may be about 0.
        const FEWEST: usize = 64;
        let calls = |batch: usize| FEWEST.div_ceil(batch * out_features);
        let rows = self.plan.batches.iter().map(|batch| batch * calls(*batch)).max().unwrap_or(0);
        let input = normal(rows * in_features, 3, 1.0);
        let exact = exact(layer, &input);
        let mut cases = Vec::new();
        for &batch in &self.plan.batches {
            let threads = self.crew.threads();
            let label = format!("{} {out_features}x{in_features}, batch {batch}, threads {threads}", shape.source);
            self.bar.set_message(label.clone());
            let checked = batch * calls(batch);
            let (input, exact) = (&input[..checked * in_features], &exact[..checked * out_features]);
            let case = self.case(shape, layer, batch, input, exact).map_err(|e| format!("{label}: {e}"))?;
            cases.push(case);
            self.bar.inc(1);
        }
        Ok(cases)
    }

    fn case(&self, shape: &Shape, layer: Layer, batch: usize, input: &[f32], exact: &[f64]) -> Result<Case, String> {
        let threads = self.crew.threads();
        let (out_features, in_features) = (layer.out_features, layer.in_features);
        let mut runners = Vec::new();
        for entry in self.entries {
            let ready = || self.ready(entry, layer, batch, input, exact, shape.tolerance());
            runners.extend(self.crew.starting_threads(ready).map_err(|e| format!("{} {e}", entry.name))?);
        }
        let input = &input[..batch * in_features];
        let mut profiler = (threads == 1).then(|| Profiler::new(layer)).transpose()?;
        self.time(&mut runners, profiler.as_mut(), input, batch * out_features)?;
        let timings: Vec<Timing> = runners.into_iter().map(Runner::timing).collect();
        let (seconds, limit) = self.least_time(layer, batch);
        Ok(Case {
            source: shape.source.clone(),
            layer: shape.names[0].clone(),
            count: shape.count,
            out_features,
            in_features,
            batch,
            threads,
            limit_share: seconds / timings[0].median,
            timings,
            split: profiler.map(Profiler::split),
            limit,
        })
    }

    /// The contender, made and found to be right; `None` where it can't run so.
    fn ready<'a>(
        &self,
        entry: &'a Entry,
        layer: Layer,
        batch: usize,
        input: &[f32],
        exact: &[f64],
        tolerance: f64,
    ) -> Result<Option<Runner<'a>>, String> {
        let failed = |e| format!("failed: {e}");
        let mut made = None;
        let mut pack = f64::INFINITY;
        // The least of three times, as memory is new at first.
        for _ in 0..if entry.packs && !self.plan.quick { 3 } else { 1 } {
            drop(made.take());
            let start = Instant::now();
            made = (entry.make)(layer, batch, self.crew.threads()).map_err(failed)?;
            pack = pack.min(start.elapsed().as_secs_f64());
        }
        let Some(mut contender) = made else { return Ok(None) };
        let call = (batch * layer.in_features, batch * layer.out_features);
        let error = error(&mut *contender, input, exact, call).map_err(failed)?;
        let (kind, tolerance) = if entry.int8 { ("int8", tolerance) } else { ("fp32", 1e-5) };
        if error.is_nan() || error > tolerance {
            return Err(format!("is wrong: its error is {error:.1e} against float64; {kind} may have {tolerance:.1e}"));
        }
        let pack = entry.packs.then_some(pack);
        Ok(Some(Runner { name: &entry.name, int8: entry.int8, contender, error, pack, calls: 1, samples: Vec::new() }))
    }

    /// Fills the samples, the contenders and the profiler in turn.
    fn time(
        &self,
        runners: &mut [Runner],
        mut profiler: Option<&mut Profiler>,
        input: &[f32],
        outputs: usize,
    ) -> Result<(), String> {
        // Shorter runs are repeated until the clock can tell them apart.
        let sample = Duration::from_micros(if self.plan.quick { 5 } else { 50 });
        let mut output = vec![0.0; outputs];
        for runner in runners.iter_mut().filter(|_| !self.plan.cold) {
            let mut least = Duration::MAX;
            for _ in 0..3 {
                least = least.min(runner.sample(1, input, &mut output)?.time);
            }
            runner.calls = calls_in(sample, least);
        }
        let flush = Flush::new(self.crew, self.plan.isa, self.plan.cold);
        for i in turns(runners.len() + usize::from(profiler.is_some()), self.plan.repetitions) {
            let Some(runner) = runners.get_mut(i) else {
                self.profile(profiler.as_deref_mut(), runners[0].calls, &flush, input, &mut output)?;
                continue;
            };
            let mut sample = self.turn(runner, &flush, input, &mut output)?;
            // Again, if another program had this CPU meanwhile: long calls would suffer more from it than short ones.
            for _ in 0..2 {
                if !sample.interrupted {
                    break;
                }
                sample = self.turn(runner, &flush, input, &mut output)?;
            }
            let [all, interrupted] = self.samples.get();
            let told = usize::from(self.crew.threads() == 1);
            self.samples.set([all + told, interrupted + usize::from(sample.interrupted)]);
            runner.samples.push(sample.time.as_secs_f64() / f64::from(runner.calls));
        }
        Ok(())
    }

    /// The profiler's turn: as many calls as in a sample of this crate's.
    fn profile(
        &self,
        profiler: Option<&mut Profiler>,
        calls: u32,
        flush: &Flush,
        input: &[f32],
        output: &mut [f32],
    ) -> Result<(), String> {
        let Some(profiler) = profiler else { return Ok(()) };
        flush.before(input, output);
        if !self.plan.cold {
            warm(|| profiler.call(input, output).map(|_| ()))?;
        }
        profiler.sample(calls, input, output)
    }

    fn turn(&self, runner: &mut Runner, flush: &Flush, input: &[f32], output: &mut [f32]) -> Result<Sample, String> {
        flush.before(input, output);
        if !self.plan.cold {
            warm(|| runner.sample(1, input, output).map(|_| ()))?;
        }
        let before = threads::computed_here();
        let mut sample = runner.sample(runner.calls, input, output)?;
        let computed = threads::computed_here().saturating_sub(before);
        // On several threads this one also waits for others.
        sample.interrupted =
            self.crew.threads() == 1 && sample.time > computed.mul_f64(1.03) + Duration::from_micros(5);
        Ok(sample)
    }

    /// The time that this machine needs at least for the case in int8, and for what.
    fn least_time(&self, layer: Layer, batch: usize) -> (f64, &'static str) {
        let weights = layer.weight.len() as f64;
        let read = weights / self.bandwidth(weights);
        let multiply = weights * batch as f64 / (self.limits.int8_per_second * self.crew.threads() as f64);
        if read > multiply { (read, "read") } else { (multiply, "int8") }
    }

    /// Bytes per second at a size: between those measured, in proportion to the logarithm.
    fn bandwidth(&self, bytes: f64) -> f64 {
        let (first, last) = (&self.read[0], &self.read[self.read.len() - 1]);
        if self.plan.cold || bytes >= last.bytes as f64 {
            return last.bytes_per_second;
        }
        let around = self.read.windows(2).find(|pair| bytes < pair[1].bytes as f64 && bytes >= pair[0].bytes as f64);
        around.map_or(first.bytes_per_second, |pair| {
            let [low, high] = [pair[0].bytes, pair[1].bytes].map(|size| (size as f64).ln());
            let part = (bytes.ln() - low) / (high - low);
            pair[0].bytes_per_second * (1.0 - part) + pair[1].bytes_per_second * part
        })
    }
}

/// x·Wᵀ + b in float64.
fn exact(layer: Layer, input: &[f32]) -> Vec<f64> {
    linear_f64(input, layer.weight, layer.in_features, layer.bias)
}

/// ‖y − exact‖ / ‖exact‖, over as many calls as the input is for; a call takes and gives so many values.
fn error(
    contender: &mut dyn Contender,
    input: &[f32],
    exact: &[f64],
    (inputs, outputs): (usize, usize),
) -> Result<f64, String> {
    let mut output = vec![f32::NAN; exact.len()]; // which is found if it stays
    for (input, output) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(outputs)) {
        contender.run(input, output)?;
    }
    Ok(relative_error(&output, exact))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes as it should, but for what `change` does to the output.
    struct Changed(fn(&mut [f32]));

    const LAYER: Layer =
        Layer { weight: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], bias: &[0.5, -0.5], out_features: 2, in_features: 3 };

    impl Contender for Changed {
        fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
            output.iter_mut().zip(exact(LAYER, input)).for_each(|(y, exact)| *y = exact as f32);
            (self.0)(output);
            Ok(())
        }
    }

    #[test]
    fn whatever_a_contender_gets_wrong_is_in_its_error() {
        let input = normal(12, 1, 1.0);
        let exact = exact(LAYER, &input);
        let error = |change| error(&mut Changed(change), &input, &exact, (6, 4)).unwrap();
        assert!(error(|_| ()) < 1e-6);
        assert!(error(|y| y[3] += 0.5) > 0.01);
        assert!(error(|y| y[0] = f32::NAN).is_nan());
        assert!(error(|y| y.swap(0, 1)) > 0.01);
    }
}
