//! Many threads on one handle, and a long life.

use super::{Everything, folder, number};
use fbgemm::{
    Int8Scheme, Linear, ModelFile, PackedMatrix, PackedMatrixFp16, QuantizeOptions, load_modules, quantize_modules,
    save_modules, unload_modules,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::process::alone;
use fbgemm_testkit::random::normal;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For how long, in the long mode.
const SECONDS: &str = "FBGEMM_RS_STRESS_SECONDS";

#[test]
fn sixty_four_threads_do_everything_with_the_same_handles() {
    let all = Everything::new();
    let answers = all.answers();
    let folder = folder("faults-threads");
    let until = Instant::now() + Duration::from_secs(number(SECONDS, 0) as u64);
    let done = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for thread in 0..64 {
            let (all, answers, folder, done) = (&all, &answers, &folder, &done);
            threads.spawn(move || {
                for round in (0..).take_while(|&round| round < 30 || Instant::now() < until) {
                    let kind = (thread * 7 + round) % all.kinds();
                    assert_eq!(all.answer(kind), answers[kind], "kind {kind} of thread {thread}");
                    one_thing_more(all, answers, (thread + round * 13) % 7, kind, &folder.join(format!("{thread}")));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} rounds", done.into_inner());
    assert_eq!(all.answers(), answers);
}

fn one_thing_more(all: &Everything, answers: &[Vec<u32>], what: usize, kind: usize, path: &Path) {
    let Some(layer) = all.linear.get(kind) else { return fbgemm::release_thread_buffer() };
    let input = normal(3 * Everything::K, 8, 1.0);
    match what {
        0 => fbgemm::release_thread_buffer(),
        1 => drop(layer.clone()),
        2 => {
            if let Linear::Int8(layer) = layer {
                let again = layer.to_portable().unwrap().pack().unwrap();
                assert_eq!(bits(&again.forward(&input).unwrap()), answers[kind]);
            }
        }
        3 => {
            save_modules(&BTreeMap::from([("layer", layer.clone())]), &[], path).unwrap();
            let file = ModelFile::open(path).unwrap();
            if layer.is_quantized() {
                assert_eq!(bits(&file.linear("layer").unwrap().forward(&input).unwrap()), answers[kind]);
            }
        }
        4 => {
            let mut output = vec![0.0; 3 * Everything::N];
            layer.forward_tasks(&input, &mut output, 4, |task| (0..4).rev().for_each(task)).unwrap();
            assert_eq!(bits(&output), answers[kind]);
        }
        5 => {
            let doubles: Vec<f64> = input.iter().map(|&x| f64::from(x)).collect();
            let output: Vec<f32> = layer.forward(&doubles).unwrap().iter().map(|&y| y as f32).collect();
            assert_eq!(bits(&output), answers[kind]);
        }
        // The last of a clone's owners is another thread.
        _ => {
            let clone = layer.clone();
            let output = std::thread::spawn(move || clone.forward(&normal(3 * Everything::K, 8, 1.0)).unwrap());
            assert_eq!(bits(&output.join().unwrap()), answers[kind]);
        }
    }
}

#[test]
fn a_service_s_memory_stays_as_it_is() {
    // Its memory is counted.
    print!("{}", alone("threads::serving", &[]));
}

/// This process's memory in pages.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "counts its process's memory and handles"]
fn serving() {
    const THREADS: usize = 8;
    const SAMPLES: usize = 400;
    let calls = number("FBGEMM_RS_SOAK_CALLS", 1_000_000);
    let path = folder("faults-soak").join("model.safetensors");
    let layer = |i: usize| Linear::new(normal(64 * 64, i as u64, 0.2), Some(vec![0.1; 64]), 64, 64).unwrap();
    let new = || -> BTreeMap<String, Linear> { (0..6).map(|i| (format!("{i}"), layer(i))).collect() };
    let mut model = new();
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::accurate()).exclude("0").exclude("1")).unwrap();
    quantize_modules(&mut model, &QuantizeOptions::new(fbgemm::LinearScheme::Fp16).include("0")).unwrap();
    save_modules(&model, &[], &path).unwrap();
    let input = normal(4 * 64, 9, 1.0);
    let answers: BTreeMap<String, Vec<u32>> =
        model.iter().map(|(name, layer)| (name.clone(), bits(&layer.forward(&input).unwrap()))).collect();
    let handles = (PackedMatrix::live(), PackedMatrixFp16::live());
    assert_eq!(handles, (4, 1));

    let model = RwLock::new(model);
    let (made, changes, errors) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let samples = RwLock::new(Vec::new());
    let started = Instant::now();
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                let mut output = vec![0.0f32; 4 * 64];
                loop {
                    let call = made.fetch_add(1, Ordering::Relaxed);
                    if call >= calls {
                        break;
                    }
                    if call.is_multiple_of(calls / SAMPLES) {
                        change(call / (calls / SAMPLES), &model, &new, &path);
                        changes.fetch_add(1, Ordering::Relaxed);
                        samples.write().unwrap().push(resident());
                    }
                    let model = model.read().unwrap();
                    let (name, layer) = model.iter().nth(call % model.len()).unwrap();
                    let right = layer.forward_into(&input, &mut output).is_ok() && bits(&output) == answers[name];
                    errors.fetch_add(usize::from(!right), Ordering::Relaxed);
                }
            });
        }
    });
    // Without the beginning, when threads make their buffers.
    let samples = samples.into_inner().unwrap().split_off(SAMPLES / 20);
    let quarter = samples.len() / 4;
    let mean = |of: &[usize]| of.iter().sum::<usize>() as f64 / of.len() as f64 * 4096.0 / 1e6;
    let (first, last) = (mean(&samples[..quarter]), mean(&samples[samples.len() - quarter..]));
    println!(
        "{calls} calls by {THREADS} threads in {:.0?}, {} changes of the model: {first:.2} MB in the first quarter, \
         {last:.2} MB in the last ({:+.2} %), {} errors",
        started.elapsed(),
        changes.into_inner(),
        (last / first - 1.0) * 100.0,
        errors.load(Ordering::Relaxed)
    );
    assert_eq!(errors.into_inner(), 0);
    // 1 %; of the 20 MB of a process without libtorch, what the C library's allocator takes until each thread has met each
    // change: 0.4 MB as much for 400 changes as for 4000.
    assert!(last < first + (first * 0.01).max(1.0), "{first} MB to {last} MB");
    drop(model);
    assert_eq!((PackedMatrix::live(), PackedMatrixFp16::live()), (0, 0));
}

/// What a service does with its model now and then; each leaves a model that answers as before.
fn change(
    number: usize,
    model: &RwLock<BTreeMap<String, Linear>>,
    new: &impl Fn() -> BTreeMap<String, Linear>,
    path: &Path,
) {
    match number % 4 {
        // Another version, read while the old one serves, then taken.
        0 => {
            let mut fresh = new();
            let file = ModelFile::open(path).unwrap();
            load_modules(&mut fresh, &file, 2).unwrap();
            *model.write().unwrap() = fresh;
        }
        // Released and read again in its place.
        1 => {
            let mut model = model.write().unwrap();
            unload_modules(&mut *model);
            load_modules(&mut *model, &ModelFile::open(path).unwrap(), 1).unwrap();
        }
        // Packed again.
        2 => {
            for layer in model.write().unwrap().values_mut() {
                if let Linear::Int8(int8) = layer {
                    *layer = int8.to_portable().unwrap().pack().unwrap().into();
                }
            }
        }
        _ => {
            let copy = model.read().unwrap().clone();
            save_modules(&copy, &[], path).unwrap();
            fbgemm::release_thread_buffer();
        }
    }
}
