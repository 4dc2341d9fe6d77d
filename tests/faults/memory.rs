//! Each allocation of each kind of work fails once: an error, or, where it is one of Rust's own collections for few
//! bytes, the end that Rust gives every program then; nothing else.

use super::system::{End, Fork, Shared, failing_allocation};
use super::{Everything, folder};
use fbgemm::{
    BagOptions, EmbeddingFormat, Fp16Linear, Int8Scheme, Linear, ModelFile, QuantizeOptions, QuantizedLinear, Result,
    load_modules, quantize_checkpoint, quantize_modules, save_modules,
};
use fbgemm_testkit::process::alone;
use fbgemm_testkit::random::normal;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// What Rust's collections allocate for names, lists and the like, in bytes: where there is not even this much, Rust ends
/// the process. All that grows with a weight, an input or an output is larger here.
const FEW: usize = 2048;

const ABORTED: i32 = 6;

/// How often each ending came.
#[derive(Debug, Default)]
struct Ends {
    errors: usize,
    fine: usize,
    aborted: usize,
}

/// Runs `work` in as many processes as it allocates, and once more.
fn each_fails_once(what: &str, mut work: impl FnMut() -> Result<()>) -> Ends {
    let failed = Shared::new();
    let mut ends = Ends::default();
    // Of many allocations fewer and fewer, unless the long mode asks for each.
    let each = std::env::var_os("FBGEMM_RS_EACH_ALLOCATION").is_some();
    for number in std::iter::successors(Some(1), |number| Some(number + if each { 1 } else { 1 + number / 12 })) {
        failed.set(0);
        let end = Fork::run(|| {
            let (result, count) = failing_allocation(number, failed.place(), &mut work);
            match result {
                Ok(()) if count < number => 2,
                Ok(()) => 0,
                // What was left can be used and dropped.
                Err(e) => i32::from(e.to_string().is_empty()) + 1,
            }
        });
        let (size, end) = (failed.get(), end.wait());
        // A save looks for shards beside its file: what ended ones left would be more and more to look at.
        remove_unfinished();
        match end {
            End::Code(2) => break,
            End::Code(0) => ends.fine += 1, // it did without
            End::Code(1) => ends.errors += 1,
            End::Signal(ABORTED) if size < FEW => ends.aborted += 1,
            other => panic!("{what}: allocation {number}, of {size} bytes: {other:?}"),
        }
    }
    println!("{what}: {ends:?}");
    ends
}

/// Where this test's files are.
const FOLDER: &str = "faults-memory";

fn remove_unfinished() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(FOLDER);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".fbgemm-") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn no_allocation_that_fails_ends_the_process() {
    // In a process with one test, whose thread alone is forked.
    let said = alone("memory::failing_each_allocation", &[]);
    print!("{said}");
}

#[test]
#[ignore = "forks its process"]
fn failing_each_allocation() {
    let (n, k) = (100, 600);
    let weight = normal(n * k, 1, 0.2);
    let bias = vec![0.1; n];
    // At the first call FBGEMM also generates its kernels.
    let ends = each_fails_once("quantize and pack", || fbgemm::quantize_weight(&weight, n, k)?.pack().map(drop));
    assert!(ends.errors >= 2);
    each_fails_once("a layer", || QuantizedLinear::new(&weight, None, n, k, Int8Scheme::accurate()).map(drop));
    each_fails_once("a weight in fp16", || Fp16Linear::new(&weight, None, n, k).map(drop));

    let input = normal(3 * k, 2, 1.0);
    let everything = Everything::new();
    let layer = QuantizedLinear::new(&weight, Some(bias.clone()), n, k, Int8Scheme::pytorch()).unwrap();
    let rows = QuantizedLinear::new(&weight, Some(bias.clone()), n, k, Int8Scheme::accurate()).unwrap();
    let fp16 = Fp16Linear::new(&weight, Some(bias), n, k).unwrap();
    // FBGEMM's code generator does not bear it: what a service does at its start, on a thread of its own, so that this
    // one's buffers are still to be made.
    let doubles: Vec<f64> = input.iter().map(|&x| f64::from(x)).collect();
    let start = || {
        let all = (layer.forward(&input), rows.forward(&input), fp16.forward(&input), layer.forward(&doubles));
        drop((all.0.unwrap(), all.1.unwrap(), all.2.unwrap(), all.3.unwrap(), everything.answers()));
    };
    std::thread::scope(|threads| drop(threads.spawn(start)));
    let ends = each_fails_once("a first call", || layer.forward(&input).map(drop));
    assert!(ends.errors >= 2, "the output and the thread's buffer at least");
    each_fails_once("a first call by rows", || rows.forward(&input).map(drop));
    each_fails_once("a first call in fp16", || fp16.forward(&input).map(drop));
    each_fails_once("a first call of another type", || layer.forward(&doubles).map(drop));
    each_fails_once("unpacking", || layer.to_portable()?.pack().map(drop));

    let table: Vec<f32> = normal(80 * 64, 3, 1.0);
    let indices: Vec<i64> = (0..600).map(|i| 79 - i % 80).collect();
    for format in [EmbeddingFormat::Fp16, EmbeddingFormat::Int8, EmbeddingFormat::Int4] {
        each_fails_once("a table", || fbgemm::pack_embedding(&table, 80, 64, format).map(drop));
        let stored = fbgemm::pack_embedding(&table, 80, 64, format).unwrap().bytes().to_vec();
        // The last row lies at the end of its memory, so that it is looked up in a copy.
        let stored = fbgemm::EmbeddingTable::from_bytes(stored, format, 80, 64).unwrap();
        let bag = || fbgemm::embedding_bag(&stored, &indices, &[0i32], BagOptions::new().padding_idx(3));
        let look_up = || drop((fbgemm::embedding(&stored, &indices).unwrap(), bag().unwrap()));
        std::thread::scope(|threads| drop(threads.spawn(look_up)));
        each_fails_once("rows", || fbgemm::embedding(&stored, &indices).map(drop));
        each_fails_once("a bag", || bag().map(drop));
        each_fails_once("unpacking a table", || stored.unpack().map(drop));
    }

    let (states, sequence) = (everything.lstm.zero_state(2).unwrap(), normal(30 * 2 * 24, 4, 1.0));
    let (mut h, mut c) = (states.clone(), states);
    let (mut first_h, mut first_c) = (h.clone(), c.clone());
    let start = || drop(everything.lstm.forward(&sequence, &mut first_h, &mut first_c).unwrap());
    std::thread::scope(|threads| drop(threads.spawn(start)));
    each_fails_once("a recurrent layer", || everything.lstm.forward(&sequence, &mut h, &mut c).map(drop));

    let float = || Linear::new(weight.clone(), Some(vec![0.5; n]), n, k).unwrap();
    let mut model = BTreeMap::from([("a", float()), ("b", float())]);
    let folder = folder(FOLDER);
    let (float_path, path) = (folder.join("float.safetensors"), folder.join("model.safetensors"));
    save_modules(&model, &[], &float_path).unwrap();
    each_fails_once("quantizing a model", || {
        quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).map(drop)
    });
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    each_fails_once("saving", || save_modules(&model, &[], &path));
    let saved = std::fs::read(&path).unwrap();
    save_modules(&model, &[], &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), saved, "the file was whole after all that");
    each_fails_once("loading", || {
        let file = ModelFile::open(&path)?;
        load_modules(&mut model, &file, 1)
    });
    each_fails_once("quantizing a file", || {
        let (file, to) = (ModelFile::open(&float_path)?, folder.join("quantized.safetensors"));
        let options = QuantizeOptions::new(Int8Scheme::accurate()).into();
        quantize_checkpoint(&file, &options, Some(&to), &mut |_, _| ControlFlow::Continue(())).map(drop)
    });
}
