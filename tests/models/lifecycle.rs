//! What stays in memory: packed handles and bytes, over a layer's and a model's life.

use crate::folder;
use fbgemm::{
    Int8Scheme, Linear, ModelFile, PackedMatrix, QuantizeOptions, QuantizedLinear, load_modules, quantize_modules,
    save_modules, unload_modules,
};
use fbgemm_testkit::process::alone;
use fbgemm_testkit::random::normal;

#[test]
fn packed_handles_live_as_long_as_their_layers() {
    alone("lifecycle::counting_handles", &[]);
}

#[test]
#[ignore = "counts every handle of its process"]
fn counting_handles() {
    let live = PackedMatrix::live;
    let layer = QuantizedLinear::new(&normal(24 * 40, 1, 1.0), None, 24, 40, Int8Scheme::pytorch()).unwrap();
    assert_eq!(live(), 1);
    let clone = layer.clone();
    assert_eq!(live(), 1, "a clone shares the weight");
    let portable = clone.into_portable().unwrap();
    assert_eq!(live(), 1, "the other still has it");
    drop(layer);
    assert_eq!(live(), 0);
    let layer = portable.pack().unwrap();
    assert_eq!(live(), 1);
    let portable = layer.into_portable().unwrap();
    assert_eq!(live(), 0, "released");
    drop(portable);

    let path = folder("handles").join("model.safetensors");
    let float = || Linear::new(normal(24 * 40, 1, 1.0), None, 24, 40).unwrap();
    let mut model: Vec<Linear> = (0..5).map(|_| float()).collect();
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    assert_eq!(live(), 5);
    save_modules(&model, &[], &path).unwrap();
    assert_eq!(live(), 5);
    drop(model);
    assert_eq!(live(), 0, "saved and dropped");

    let bytes = std::fs::read(&path).unwrap();
    let file = ModelFile::parse(&bytes).unwrap();
    assert_eq!(live(), 0, "parsed, nothing packed");
    let mut model: Vec<Linear> = (0..5).map(|_| float()).collect();
    load_modules(&mut model, &file, 3).unwrap();
    assert_eq!(live(), 5, "one for each layer");
    load_modules(&mut model, &file, 3).unwrap();
    assert_eq!(live(), 5, "the old ones are dropped");
    unload_modules(&mut model);
    assert_eq!(live(), 0, "parked");
    load_modules(&mut model, &file, 3).unwrap();
    assert_eq!(live(), 5, "and back");
    let mut wrong: Vec<Linear> = (0..4).map(|_| float()).collect();
    load_modules(&mut wrong, &file, 3).unwrap_err();
    let json = serde_json::to_string(&model).unwrap();
    assert_eq!(live(), 5, "none left over from an error or from saving");
    drop(model);
    let model: Vec<Linear> = serde_json::from_str(&json).unwrap();
    assert_eq!(live(), 5);
    drop(model);
    assert_eq!(live(), 0);
}

#[test]
fn memory_is_one_byte_a_weight_and_is_given_back() {
    println!("{}", alone("lifecycle::measuring_memory", &[]));
}

/// Resident bytes of this process: exact, where /proc/self/status is not.
fn resident() -> usize {
    from_proc("smaps_rollup", "Rss:")
}

/// The most that were resident at once since the last call of `reset_peak`.
fn peak() -> usize {
    from_proc("status", "VmHWM:")
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn from_proc(file: &str, key: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
#[ignore = "measures its process"]
fn measuring_memory() {
    // Enough layers that what the C library's heap keeps for later, some megabytes, is little of them all.
    const LAYERS: usize = 64;
    const WEIGHTS: usize = LAYERS * 1024 * 1024;
    let per_weight = |bytes: usize| bytes as f64 / WEIGHTS as f64;
    // What the first layer loads for good: FBGEMM itself, the thread's buffers.
    let small = QuantizedLinear::new(&normal(64 * 64, 1, 1.0), None, 64, 64, Int8Scheme::pytorch()).unwrap();
    let _: Vec<f32> = small.forward(&[1.0; 64]).unwrap();

    let before = resident();
    let weight = normal(1024 * 1024, 1, 1.0);
    let new = |_| QuantizedLinear::new(&weight, None, 1024, 1024, Int8Scheme::pytorch()).unwrap();
    let layers: Vec<QuantizedLinear> = (0..LAYERS).map(new).collect();
    drop(weight);
    let held = per_weight(resident() - before);
    assert!(held < 1.15, "{held} bytes a weight: two copies?");
    let bytes = layers.iter().map(QuantizedLinear::bytes).sum();
    assert!((1.0..1.04).contains(&per_weight(bytes)), "{bytes}");

    let path = folder("memory").join("model.safetensors");
    let model: Vec<Linear> = layers.iter().cloned().map(Linear::from).collect();
    save_modules(&model, &[], &path).unwrap();
    drop(model);
    let saved = per_weight(resident() - before);
    assert!(saved < 1.15, "{saved} bytes a weight after saving");
    let (parked, dropped): (Vec<_>, Vec<_>) = layers.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
    drop(dropped);
    let half = per_weight(resident() - before);
    assert!(half < 0.65, "{half} bytes a weight with half of the layers dropped");
    // The plain form that this leaves lies in the allocator's memory, which may keep it for later.
    let parked: Vec<_> = parked.into_iter().map(|(_, layer)| layer.into_portable().unwrap()).collect();
    let released = per_weight(resident() - before);
    println!(
        "resident bytes a weight: {held:.3} running, {saved:.3} saved, of one half {half:.3} and {released:.3} released"
    );
    assert!(released < 0.65, "{released} bytes a weight: packed and plain?");
    drop(parked);
}

#[test]
fn quantizing_a_model_takes_no_more_than_the_model_and_about_one_layer() {
    println!("{}", alone("lifecycle::measuring_the_peak", &[]));
}

#[test]
#[ignore = "measures its process"]
fn measuring_the_peak() {
    const LAYERS: usize = 24;
    const LAYER_BYTES: usize = 4 * 1024 * 1024;
    let mut model: Vec<Linear> =
        (0..LAYERS).map(|i| Linear::new(normal(1024 * 1024, i as u64, 1.0), None, 1024, 1024).unwrap()).collect();
    let small = QuantizedLinear::new(&normal(64 * 64, 1, 1.0), None, 64, 64, Int8Scheme::pytorch()).unwrap();
    drop(small);
    reset_peak();
    let before = resident();
    quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
    let (above, after) = (peak().saturating_sub(before), before.saturating_sub(resident()));
    println!("peak: {:.2} layers above the model", above as f64 / LAYER_BYTES as f64);
    assert!(above < 3 * LAYER_BYTES / 2, "{above} bytes above the model");
    // Three of four bytes are gone; some may stay with the allocator.
    assert!(after > LAYERS * LAYER_BYTES / 2, "only {after} bytes less than before");
}
