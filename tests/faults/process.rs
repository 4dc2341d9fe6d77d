//! A process's life: forked after use, ended while threads run, with small stacks. (A library that is loaded and closed is
//! in `tests/packaging/plugin.rs`.)

use super::system::{End, Fork};
use super::{Everything, number};
use fbgemm_testkit::process::{again, alone};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn a_forked_process_goes_on_with_the_same_handles() {
    alone("process::forking", &[]);
}

#[test]
#[ignore = "forks its process"]
fn forking() {
    let all = Everything::new();
    // Some kinds used before, and one not at all: its kernels are generated in the child.
    let (unused, used) = (all.kinds() - 1, 0..all.kinds() - 1);
    let answers: Vec<_> = used.map(|kind| all.answer(kind)).collect();
    let children: Vec<Fork> = (0..8)
        .map(|_| {
            Fork::run(|| {
                let right = answers.iter().enumerate().all(|(kind, answer)| all.answer(kind) == *answer);
                // Handles are made and dropped, threads started, and the child's own memory released.
                let fresh = Everything::new();
                let threads: Vec<_> = (0..2).map(|_| std::thread::spawn(|| Everything::new().answers())).collect();
                let same = threads.into_iter().all(|thread| thread.join().unwrap() == fresh.answers());
                let late = all.answer(unused) == fresh.answer(unused);
                fbgemm::release_thread_buffer();
                i32::from(!(right && same && late))
            })
        })
        .collect();
    assert!(children.into_iter().all(|child| child.wait() == End::Code(0)));
    let again: Vec<_> = (0..unused).map(|kind| all.answer(kind)).collect();
    assert_eq!(again, answers);
}

#[test]
#[ignore = "forks its process"]
fn ending_a_fork() {
    let all: &'static Everything = Box::leak(Box::new(Everything::new()));
    let calls: &'static AtomicUsize = Box::leak(Box::default());
    for _ in 0..4 {
        std::thread::spawn(move || {
            for round in 0.. {
                all.answer(round % all.kinds());
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // Forked while other threads are inside of calls, which there are none of in the child.
    for _ in 0..5 {
        let before = calls.load(Ordering::Relaxed);
        while calls.load(Ordering::Relaxed) < before + 50 {
            std::thread::yield_now();
        }
        assert_eq!(Fork::run(|| std::process::exit(5)).wait(), End::Code(5));
    }
    std::process::exit(0);
}

#[test]
fn a_forked_process_ends_though_threads_of_its_parent_compute() {
    let mut command = again();
    command.args(["--exact", "process::ending_a_fork", "--ignored", "--nocapture"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_process_ends_while_its_threads_compute() {
    for round in 0..number("FBGEMM_RS_EXITS", 10) {
        let mut command = again();
        command.args(["--exact", "process::ending", "--ignored", "--nocapture"]).env("ROUND", round.to_string());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
#[ignore = "ends its process"]
fn ending() {
    let round: u64 = std::env::var("ROUND").unwrap().parse().unwrap();
    // A thread whose call is refused stays as it is.
    std::panic::set_hook(Box::new(|_| {
        loop {
            std::thread::park();
        }
    }));
    let all: &'static Everything = Box::leak(Box::new(Everything::new()));
    all.answers(); // a first call of a kind while the process ends is not borne yet: FBGEMM then makes what is static
    let begun: &'static AtomicUsize = Box::leak(Box::default());
    for thread in 0..8 {
        std::thread::spawn(move || {
            for round in 0.. {
                all.answer((thread + round) % all.kinds());
                begun.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while begun.load(Ordering::Relaxed) < 8 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(round * 3));
    std::process::exit(7); // runs C++'s destructors of what is static, while the threads go on
}

#[test]
fn a_thread_with_a_small_stack_does_everything() {
    // In a process of its own, where such a thread is the first to call, so that FBGEMM generates its kernels on it.
    print!("{}", alone("process::with_a_small_stack", &[]));
}

#[test]
#[ignore = "ends its process where the stack is too small"]
fn with_a_small_stack() {
    let on_a_stack_of = |kibibytes: usize| {
        let thread = std::thread::Builder::new().stack_size(kibibytes << 10);
        thread.spawn(|| Everything::new().answers()).unwrap().join().unwrap()
    };
    let kibibytes = number("FBGEMM_RS_STACK_KIB", 64);
    let small = on_a_stack_of(kibibytes);
    assert_eq!(small, Everything::new().answers());
}
