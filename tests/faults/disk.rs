//! Files while the system interrupts, transfers little at once, or the process is killed. (What a full disk and a folder
//! without permission give is in `tests/models/output.rs`.)

use super::system::{End, Fork, Shared, broken_transfers};
use super::{folder, number};
use fbgemm::{Int8Scheme, Linear, ModelFile, QuantizeOptions, quantize_checkpoint, quantize_modules, save_modules};
use fbgemm_testkit::files::names_in;
use fbgemm_testkit::process::alone;
use fbgemm_testkit::random::normal;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

fn model(seed: u64, layers: usize) -> BTreeMap<String, Linear> {
    let layer = |i: usize| Linear::new(normal(128 * 256, seed + i as u64, 0.2), None, 128, 256).unwrap();
    let mut model = (0..layers).map(|i| (format!("{i:03}"), layer(i))).collect();
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    model
}

#[test]
fn interrupted_and_short_reads_and_writes_change_nothing() {
    let folder = folder("faults-transfers");
    let (plain, broken) = (folder.join("plain.safetensors"), folder.join("broken.safetensors"));
    let (from, to) = (folder.join("float.safetensors"), folder.join("int8.safetensors"));
    let model = model(1, 4);
    save_modules(&model, &[], &plain).unwrap();
    let (saved, writes) = broken_transfers(|| save_modules(&model, &[], &broken));
    saved.unwrap();
    assert!(writes > 20, "{writes} writes: the faults were not there");
    assert_eq!(std::fs::read(&broken).unwrap(), std::fs::read(&plain).unwrap());

    let (layers, reads) = broken_transfers(|| ModelFile::open(&broken).and_then(|file| file.load_quantized(1)));
    assert!(reads > 20, "{reads} reads: the faults were not there");
    let input = normal(256, 9, 1.0);
    for (name, layer) in layers.unwrap() {
        assert_eq!(layer.forward(&input).unwrap(), model[&name].forward(&input).unwrap());
    }

    let float = BTreeMap::from([("a", Linear::new(normal(128 * 256, 5, 0.2), None, 128, 256).unwrap())]);
    save_modules(&float, &[], &from).unwrap();
    let quantize = || {
        let options = QuantizeOptions::new(Int8Scheme::pytorch()).into();
        let mut go_on = |_, _| ControlFlow::Continue(());
        quantize_checkpoint(&ModelFile::open(&from).unwrap(), &options, Some(&to), &mut go_on).map(drop)
    };
    quantize().unwrap();
    let expected = std::fs::read(&to).unwrap();
    std::fs::remove_file(&to).unwrap();
    broken_transfers(quantize).0.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), expected);
}

#[test]
fn a_save_that_is_killed_leaves_the_old_file_or_the_new() {
    alone("disk::killing_saves", &[]);
}

#[test]
#[ignore = "forks its process"]
fn killing_saves() {
    let path = folder("faults-killed").join("model.safetensors");
    let (old, new) = (model(1, 8), model(100, 8));
    save_modules(&new, &[], &path).unwrap();
    let new_bytes = std::fs::read(&path).unwrap();
    save_modules(&old, &[], &path).unwrap();
    let old_bytes = std::fs::read(&path).unwrap();
    let (mut killed, mut seen) = (0, [0, 0]);
    for round in 0..number("FBGEMM_RS_KILLS", 60) {
        let begun = Shared::new();
        let child = Fork::run(|| {
            begun.set(1);
            // Both in turn, so that the kill falls into a save, whichever.
            for _ in 0..1000 {
                save_modules(&new, &[], &path).unwrap();
                save_modules(&old, &[], &path).unwrap();
            }
            0
        });
        while begun.get() == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(300 + 977 * round as u64 % 30_000));
        child.kill();
        killed += usize::from(child.wait() == End::Signal(9));
        let bytes = std::fs::read(&path).unwrap();
        let which = [&old_bytes, &new_bytes].iter().position(|known| **known == bytes);
        seen[which.unwrap_or_else(|| panic!("round {round}: a file that is neither"))] += 1;
        ModelFile::open(&path).unwrap().load_quantized(1).unwrap();
    }
    println!("{killed} saves killed, the file then {seen:?} (old, new)");
    assert!(killed > 30 && seen.iter().all(|&times| times > 0), "{killed} {seen:?}");
    // What killed saves leave bears a name of its own, and the next save does not mind.
    save_modules(&new, &[], &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), new_bytes);
    let left = names_in(path.parent().unwrap());
    assert!(left.iter().all(|name| name == "model.safetensors" || name.starts_with(".fbgemm-")), "{left:?}");
}
