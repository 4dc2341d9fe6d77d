//! How times are taken: in turn, each sample long enough for the clock, and the middle of many.

use std::time::{Duration, Instant};

/// The turns of so many rivals, each as often as there are repetitions, so that a change of the machine's speed hits all
/// alike: the first in one repetition is the last in the next.
pub fn turns(rivals: usize, repetitions: usize) -> impl Iterator<Item = usize> {
    (0..repetitions).flat_map(move |repetition| (0..rivals).map(move |i| (repetition + i) % rivals))
}

/// How many calls of this length make a sample that the clock can tell from another.
pub fn calls_in(sample: Duration, call: Duration) -> u32 {
    u32::try_from(sample.as_nanos() / call.as_nanos().max(1)).unwrap_or(u32::MAX - 1) + 1
}

/// The time of one of so many calls.
pub fn time(calls: u32, mut call: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..calls).for_each(|_| call());
    start.elapsed() / calls
}

/// The median time of a call of each rival, in turn, after a warm-up; samples last about `sample`, or a call if that is
/// longer.
pub fn medians<const N: usize>(
    repetitions: usize,
    sample: Duration,
    mut rivals: [&mut dyn FnMut(); N],
) -> [Duration; N] {
    const WARM_UP: usize = 3;
    let calls = rivals.each_mut().map(|rival| {
        let least = (0..WARM_UP).map(|_| time(1, &mut **rival)).min();
        calls_in(sample, least.unwrap_or(sample))
    });
    let mut times = [const { Vec::new() }; N];
    for i in turns(N, repetitions) {
        times[i].push(time(calls[i], &mut *rivals[i]));
    }
    times.map(median)
}

/// The middle one, the later of two.
///
/// # Panics
/// Where there is none.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The lower quartile, the median, the upper quartile; between two values in proportion.
///
/// # Panics
/// Where there is none.
pub fn quartiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|part| {
        let position = part * (values.len() - 1) as f64;
        let (low, high) = (values[position.floor() as usize], values[position.ceil() as usize]);
        low + (high - low) * position.fract()
    })
}

/// Seconds of a call by the clock, and of all this process's threads' processor time: the least of so many samples, each of
/// calls until they take `sample` together.
pub fn least(samples: usize, sample: Duration, mut call: impl FnMut()) -> [f64; 2] {
    let mut best = [f64::MAX; 2];
    for _ in 0..samples {
        let (start, before, mut calls) = (Instant::now(), processor_time(), 0);
        while calls == 0 || start.elapsed() < sample {
            call();
            calls += 1;
        }
        let each = |seconds: f64| seconds / f64::from(calls);
        best[0] = best[0].min(each(start.elapsed().as_secs_f64()));
        best[1] = best[1].min(each(processor_time() - before));
    }
    best
}

/// Of all threads of this process, in seconds.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_few_and_of_many() {
        assert_eq!(quartiles(&mut [3.0]), [3.0; 3]);
        assert_eq!(quartiles(&mut [9.0, 1.0, 2.0, 8.0, 5.0]), [2.0, 5.0, 8.0]);
        assert_eq!(quartiles(&mut [3.0, 1.0, 2.0]), [1.5, 2.0, 2.5]);
    }

    #[test]
    fn each_rival_has_as_many_turns_and_goes_first_in_its_share_of_them() {
        assert_eq!(turns(3, 3).collect::<Vec<_>>(), [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(turns(0, 5).count(), 0);
        let (mut a, mut b) = (0, 0);
        medians(4, Duration::ZERO, [&mut || a += 1, &mut || b += 1]);
        assert_eq!((a, b), (3 + 4, 3 + 4), "the warm-up, then one call for each sample");
    }

    #[test]
    fn samples_have_one_call_at_least() {
        let micros = Duration::from_micros;
        assert_eq!(calls_in(micros(50), micros(20)), 3);
        assert_eq!(calls_in(micros(50), micros(900)), 1);
        assert_eq!(calls_in(micros(50), Duration::ZERO), 50_001);
    }
}
