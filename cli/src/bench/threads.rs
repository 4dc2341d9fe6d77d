//! The threads that contenders compute on: each on a CPU of its own, and known to be at rest when another's turn comes.

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the threads compute, given each one's number.
type Job<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// The thread that measures and its helpers: `threads` in all, each pinned. The measuring one is also the first of a
/// Rayon pool of as many, so that what uses Rayon runs on that.
pub struct Crew {
    cpus: Vec<usize>,
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
    /// Threads that are pinned for good, by their numbers in the kernel.
    pinned: Vec<Pid>,
    _rayon: rayon::ThreadPool,
}

struct Shared {
    /// How many jobs there have been; helpers watch it.
    jobs: AtomicUsize,
    job: Mutex<Option<Job<'static>>>,
    /// Helpers that have yet to finish the job.
    left: AtomicUsize,
    asleep: Vec<AtomicBool>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// The CPUs that this process may use, those first that share no core with an earlier one.
pub fn cpus() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    let mut cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let core = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
    };
    let cores: Vec<String> = cpus.iter().map(|cpu| core(*cpu)).collect();
    let second: Vec<bool> = (0..cpus.len()).map(|i| cores[..i].contains(&cores[i])).collect();
    let mut order = (0..cpus.len()).collect::<Vec<_>>();
    order.sort_by_key(|i| second[*i]);
    cpus = order.into_iter().map(|i| cpus[i]).collect();
    cpus
}

fn pin(thread: Option<Pid>, cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    // Where it is refused (a sandbox), times are a little less steady: no reason to stop.
    let _ = sched_setaffinity(thread, &set);
}

/// Runs `work` on a new thread with a crew of `threads`. (New, as a thread can be part of one Rayon pool only.)
pub fn with_crew<T: Send>(threads: usize, work: impl FnOnce(&Rc<Crew>) -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| Ok(work(&Rc::new(Crew::new(threads)?))));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Crew {
    fn new(threads: usize) -> Result<Self, String> {
        let mut cpus = cpus();
        cpus.truncate(threads);
        let pinned = Arc::new(Mutex::new(vec![gettid()]));
        let settle = {
            let (pinned, cpus) = (pinned.clone(), cpus.clone());
            move |number: usize| {
                if let Some(cpu) = cpus.get(number % cpus.len().max(1)) {
                    pin(None, &[*cpu]);
                }
                pinned.lock().unwrap_or_else(PoisonError::into_inner).push(gettid());
            }
        };
        let rayon = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .use_current_thread()
            .start_handler(settle.clone())
            .build()
            .map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared {
            jobs: AtomicUsize::new(0),
            job: Mutex::new(None),
            left: AtomicUsize::new(0),
            asleep: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let helper = |number: usize| {
            let (shared, settle) = (shared.clone(), settle.clone());
            let work = move || {
                settle(number);
                shared.help(number);
            };
            std::thread::Builder::new().spawn(work).map_err(|e| e.to_string())
        };
        let helpers = (1..threads).map(helper).collect::<Result<_, _>>()?;
        settle(0);
        let mut crew = Self { cpus, shared, helpers, turn: Mutex::new(()), pinned: Vec::new(), _rayon: rayon };
        crew.run(&|_| ()); // every thread has told its number by then
        rayon::broadcast(|_| ());
        crew.pinned = std::mem::take(&mut *pinned.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(crew)
    }

    /// How many threads, the calling one among them.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `job` once with each number below [`threads`](Self::threads), each on its thread, and waits for all.
    pub fn run(&self, job: Job) {
        if self.helpers.is_empty() {
            return job(0);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Helpers use the reference for this job alone, each before it counts
        // itself out of `left`; `Wait`, dropped before `job`'s borrow ends even if the calls below panic, waits until
        // all have; and `turn` keeps a second job from being counted with this one.
        let lasting = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(lasting);
        shared.left.store(self.helpers.len(), Ordering::SeqCst);
        let wait = Wait(shared);
        shared.jobs.fetch_add(1, Ordering::SeqCst);
        self.wake();
        job(0);
        drop(wait);
        assert!(!shared.panicked.load(Ordering::SeqCst), "a thread of the crew panicked");
    }

    fn wake(&self) {
        for (helper, asleep) in self.helpers.iter().zip(&self.shared.asleep[1..]) {
            if asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
    }

    /// Runs `work`, which may start threads of its own: they get the crew's CPUs but the first.
    pub fn starting_threads<T>(&self, work: impl FnOnce() -> T) -> T {
        // Libraries count the CPUs that the thread may use.
        pin(None, &self.cpus);
        let result = work();
        pin(None, &self.cpus[..1.min(self.cpus.len())]);
        if self.cpus.len() > 1 {
            let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
            let numbers = tasks.filter_map(|task| Pid::from_raw(task.file_name().to_str()?.parse().ok()?));
            let main = rustix::process::getpid();
            for foreign in numbers.filter(|number| *number != main && !self.pinned.contains(number)) {
                pin(Some(foreign), &self.cpus[1..]);
            }
        }
        result
    }

    /// Waits until no other thread of this process computes: pools keep looking for work for a while, and would take
    /// time from the next contender.
    pub fn rest(&self) {
        if self.helpers.is_empty() {
            return;
        }
        const NAP: Duration = Duration::from_millis(1);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            let before = computed();
            std::thread::sleep(NAP);
            if computed().saturating_sub(before) < NAP / 5 {
                break;
            }
        }
    }
}

/// The time that all threads of this process have computed.
fn computed() -> Duration {
    duration(ClockId::ProcessCPUTime)
}

/// The time that this thread has computed.
pub fn computed_here() -> Duration {
    duration(ClockId::ThreadCPUTime)
}

fn duration(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.jobs.fetch_add(1, Ordering::SeqCst);
        self.wake();
        for helper in self.helpers.drain(..) {
            let _ = helper.join(); // a helper catches its panics
        }
    }
}

/// Waits for the helpers when dropped.
struct Wait<'a>(&'a Shared);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let start = Instant::now();
        while self.0.left.load(Ordering::SeqCst) > 0 {
            match start.elapsed() > Duration::from_millis(1) {
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
    }
}

impl Shared {
    /// A helper's life. It looks for the next job for a moment, so that a call that follows soon finds it awake, then
    /// sleeps.
    fn help(&self, number: usize) {
        const AWAKE: Duration = Duration::from_micros(50);
        let mut done = 0;
        loop {
            let start = Instant::now();
            while self.jobs.load(Ordering::SeqCst) == done {
                if start.elapsed() < AWAKE {
                    std::hint::spin_loop();
                    continue;
                }
                self.asleep[number].store(true, Ordering::SeqCst);
                // Looked at again: `run` counts first and looks for sleepers then.
                if self.jobs.load(Ordering::SeqCst) == done {
                    std::thread::park();
                }
                self.asleep[number].store(false, Ordering::SeqCst);
            }
            done += 1;
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
            if catch_unwind(AssertUnwindSafe(|| job.map(|job| job(number)))).is_err() {
                self.panicked.store(true, Ordering::SeqCst);
            }
            self.left.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_does_every_job_once() {
        let sums = with_crew(2, |crew| {
            let sums = [const { AtomicUsize::new(0) }; 2];
            for i in 0..2000 {
                crew.run(&|number| _ = sums[number].fetch_add(i, Ordering::SeqCst));
                if i % 500 == 0 {
                    std::thread::sleep(Duration::from_millis(1)); // the helper falls asleep
                }
            }
            sums.map(AtomicUsize::into_inner)
        });
        assert_eq!(sums, Ok([1_999_000; 2]));
    }
}
