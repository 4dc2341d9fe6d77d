//! In steady state a call allocates nothing: neither Rust nor C++, counted at malloc itself.
//!
//! A binary of its own: it puts itself before the C library's allocator, for all of the process.

use fbgemm::{
    Activations, GruCell, Int8Scheme, Linear, LinearScheme, Lstm, LstmCell, QuantizeOptions, QuantizedLinear,
    quantize_modules,
};
use fbgemm_testkit::random::normal;
use std::cell::Cell;
use std::ffi::{c_int, c_void};

thread_local! {
    /// Allocations by this thread. `const` and without a destructor, so that counting allocates nothing.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// What glibc's own allocator is called beneath the public names.
mod glibc {
    use super::*;
    unsafe extern "C" {
        pub fn __libc_malloc(size: usize) -> *mut c_void;
        pub fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
        pub fn __libc_realloc(memory: *mut c_void, size: usize) -> *mut c_void;
        pub fn __libc_memalign(alignment: usize, size: usize) -> *mut c_void;
    }
}

fn count() {
    COUNT.set(COUNT.get() + 1);
}

/// In place of the C library's: operator new, posix_memalign and Rust's allocator all end here.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    count();
    // SAFETY: passed on as it came.
    unsafe { glibc::__libc_malloc(size) }
}

/// See [`malloc`].
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(n: usize, size: usize) -> *mut c_void {
    count();
    // SAFETY: passed on as it came.
    unsafe { glibc::__libc_calloc(n, size) }
}

/// See [`malloc`].
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(memory: *mut c_void, size: usize) -> *mut c_void {
    count();
    // SAFETY: passed on as it came.
    unsafe { glibc::__libc_realloc(memory, size) }
}

/// See [`malloc`].
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    count();
    // SAFETY: passed on as it came.
    unsafe { glibc::__libc_memalign(alignment, size) }
}

/// See [`malloc`].
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(memory: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    const OUT_OF_MEMORY: c_int = 12;
    count();
    // SAFETY: passed on as it came; the caller gave a place for the result.
    unsafe {
        *memory = glibc::__libc_memalign(alignment, size);
        if (*memory).is_null() { OUT_OF_MEMORY } else { 0 }
    }
}

/// How many times this thread allocated meanwhile.
fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn allocations_of_rust_and_of_cpp_are_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
    let weight = fbgemm::quantize_weight(&[0.5; 64 * 64], 64, 64).unwrap();
    // The C++ object, and what FBGEMM's constructor makes.
    assert!(allocations(|| drop(weight.pack().unwrap())) >= 1);
}

#[test]
fn recurrent_layers_allocate_nothing_in_steady_state() {
    let linear = |n: usize, k: usize, seed| Linear::new(normal(n * k, seed, 0.1), Some(vec![0.1; n]), n, k).unwrap();
    let cell = |width| LstmCell::new(linear(4 * 40, width, 1), linear(4 * 40, 40, 2)).unwrap();
    // In fp32 the crate `gemm` allocates for several rows.
    let schemes = [LinearScheme::from(Int8Scheme::pytorch()), Int8Scheme::accurate().into(), LinearScheme::Fp16];
    for scheme in schemes {
        let mut lstm = Lstm::bidirectional(vec![cell(24), cell(24), cell(80), cell(80)]).unwrap().with_batch_first();
        let mut gru = GruCell::new(linear(3 * 40, 24, 3), linear(3 * 40, 40, 4)).unwrap();
        quantize_modules(&mut lstm, &QuantizeOptions::new(scheme)).unwrap();
        quantize_modules(&mut gru, &QuantizeOptions::new(scheme)).unwrap();
        let activations = [Ok(Activations::portable()), Activations::as_pytorch()];
        for activations in activations.into_iter().flatten() {
            let (lstm, gru) = (lstm.clone().with_activations(activations), gru.clone().with_activations(activations));
            for (time, batch) in [(1, 1), (20, 3), (1, 5)] {
                let input = normal(time * batch * 24, 5, 1.0);
                let mut output = vec![0.0; time * batch * lstm.output_size()];
                let (mut h, mut c) = (lstm.zero_state(batch).unwrap(), lstm.zero_state(batch).unwrap());
                let mut state = vec![0.0; batch * 40];
                let mut all = || {
                    lstm.forward_into(&input, &mut h, &mut c, &mut output).unwrap();
                    gru.forward(&input[..batch * 24], &mut state).unwrap();
                };
                all();
                assert_eq!(allocations(|| (0..20).for_each(|_| all())), 0, "{time} steps of {batch} rows by {scheme}");
            }
        }
    }
}

#[test]
fn calls_of_every_kind_allocate_nothing_in_steady_state() {
    for (n, k) in [(64, 64), (100, 33), (384, 1536), (1, 1)] {
        let weight = normal(n * k, 1, 0.5);
        let layer = QuantizedLinear::new(&weight, Some(vec![0.5; n]), n, k, Int8Scheme::pytorch()).unwrap();
        for rows in [1, 7, 130, 0] {
            let input = normal(rows * k, 2, 0.5);
            let doubles: Vec<f64> = input.iter().map(|&x| f64::from(x)).collect();
            let (mut output, mut wide) = (vec![0f32; rows * n], vec![0f64; rows * n]);
            let mut all = || {
                layer.forward_into(&input, &mut output).unwrap();
                layer.forward_into(&doubles, &mut wide).unwrap();
                layer.forward_tasks(&input, &mut output, 3, |task| (0..3).for_each(task)).unwrap();
            };
            all();
            assert_eq!(allocations(|| (0..20).for_each(|_| all())), 0, "{rows} rows of {n}x{k}");
        }
    }
}

#[test]
fn calls_with_fp16_weights_allocate_nothing_in_steady_state() {
    let packed = fbgemm::pack_matrix_fp16(&[0.5; 100 * 600], 100, 600).unwrap();
    let (input, mut output) = (vec![0.5f32; 130 * 600], vec![0f32; 130 * 100]);
    let mut all = || {
        for rows in [1, 7, 130, 0] {
            let (input, output) = (&input[..rows * 600], &mut output[..rows * 100]);
            fbgemm::linear_fp16_weight_into(input, &packed, Some(&[0.5; 100]), output).unwrap();
        }
    };
    all();
    assert_eq!(allocations(|| (0..20).for_each(|_| all())), 0);
}

#[test]
fn calls_of_unsigned_bytes_allocate_nothing_in_steady_state() {
    let of = fbgemm::U8Params::new(0.1, 100).unwrap();
    for scheme in [fbgemm::WeightScheme::new(), fbgemm::WeightScheme::new().per_channel()] {
        let weight = fbgemm::quantize_weight_as(&normal(100 * 33, 1, 0.5), 100, 33, scheme).unwrap();
        let (packed, bias) = (weight.pack().unwrap(), [0.5; 100]);
        for rows in [1, 7, 130, 0] {
            let input: Vec<u8> = (0..rows * 33).map(|i| (i * 7 % 256) as u8).collect();
            let mut output = vec![0; rows * 100];
            let mut both = || {
                fbgemm::linear_static_into(&input, of, &weight, &packed, Some(&bias), of, &mut output).unwrap();
                fbgemm::linear_relu_static_into(&input, of, &weight, &packed, None, of, &mut output).unwrap();
            };
            both();
            assert_eq!(allocations(|| (0..20).for_each(|_| both())), 0, "{rows} rows");
        }
    }
}

#[test]
fn look_ups_in_embedding_tables_allocate_nothing_in_steady_state() {
    use fbgemm::{BagOptions, EmbeddingFormat as F, EmbeddingTable};
    let weight: Vec<f32> = (0..50 * 52).map(|i| (i * 31 % 251) as f32 / 125.0 - 1.0).collect();
    for format in [F::Fp32, F::Fp16, F::Int8, F::Int4, F::Int2] {
        let packed = fbgemm::pack_embedding(&weight, 50, 52, format).unwrap();
        let stored = EmbeddingTable::from_bytes(packed.bytes(), format, 50, 52).unwrap();
        let indices: Vec<i64> = (0..5000).map(|i| i * 7 % 49).collect();
        let (narrow, weights) = (indices.iter().map(|&i| i as i32).collect::<Vec<_>>(), vec![0.5; 5000]);
        let offsets: Vec<i32> = (0..=100).map(|i| i * 50).collect();
        let (mut bags, mut rows) = (vec![0f32; 100 * 52], vec![0f32; 5000 * 52]);
        let mut half = vec![half::f16::ZERO; 100 * 52];
        let mut all = || {
            for table in [&packed, &stored] {
                let (sums, closed) = (BagOptions::new(), BagOptions::new().include_last_offset());
                let factors = sums.per_sample_weights(&weights);
                fbgemm::embedding_bag_into(table, &indices, &offsets, closed, &mut bags).unwrap();
                fbgemm::embedding_bag_into(table, &narrow, &offsets[..100], sums.mean(), &mut bags).unwrap();
                fbgemm::embedding_bag_into(table, &narrow, &offsets[..100], factors, &mut half).unwrap();
                let each = |task: &(dyn Fn(usize) + Sync)| (0..3).for_each(task);
                fbgemm::embedding_bag_tasks(table, &indices, &offsets, closed, &mut bags, 3, each).unwrap();
                let padded = sums.padding_idx(7);
                fbgemm::embedding_bag_into(table, &narrow, &offsets[..100], padded.mean(), &mut bags).unwrap();
                let padded = padded.per_sample_weights(&weights);
                fbgemm::embedding_bag_into(table, &indices, &offsets[..100], padded, &mut bags).unwrap();
                fbgemm::embedding_into(table, &indices, &mut rows).unwrap();
            }
        };
        all();
        assert_eq!(allocations(|| (0..20).for_each(|_| all())), 0, "{format:?}");
    }
}

#[test]
fn smaller_calls_after_larger_ones_reuse_the_buffer() {
    let layer = QuantizedLinear::new(&[0.5; 96 * 64], None, 96, 64, Int8Scheme::pytorch()).unwrap();
    layer.warm_up(1..=40).unwrap();
    let (input, mut output) = (vec![0.5f32; 40 * 64], vec![0f32; 40 * 96]);
    let count = allocations(|| {
        for rows in 1..=40 {
            layer.forward_into(&input[..rows * 64], &mut output[..rows * 96]).unwrap();
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn the_threads_buffer_is_bounded_and_given_back_on_demand() {
    std::thread::spawn(|| {
        assert_eq!(fbgemm::thread_buffer_bytes(), 0, "a new thread has none");
        let layer = QuantizedLinear::new(&vec![0.5; 1000 * 64], None, 1000, 64, Int8Scheme::pytorch()).unwrap();
        let (input, mut output) = (vec![0.5f32; 20_000 * 64], vec![0f32; 20_000 * 1000]);
        layer.forward_into(&input, &mut output).unwrap();
        // Not the sums of all 20,000 rows, which take 80 MB.
        let held = fbgemm::thread_buffer_bytes();
        assert!((1..10 << 20).contains(&held), "{held}");
        fbgemm::release_thread_buffer();
        assert_eq!(fbgemm::thread_buffer_bytes(), 0);
        layer.forward_into(&input[..64], &mut output[..1000]).unwrap();
        assert!((1..held).contains(&fbgemm::thread_buffer_bytes()));
    })
    .join()
    .unwrap();
}

/// Inputs and outputs of other types are converted some rows at a time, in a buffer that is counted and given back.
#[test]
fn the_buffer_for_other_types_is_bounded_counted_and_given_back() {
    std::thread::spawn(|| {
        let layer = QuantizedLinear::new(&vec![0.5; 1000 * 64], None, 1000, 64, Int8Scheme::accurate()).unwrap();
        let (floats, mut output) = (vec![0.5f32; 20_000 * 64], vec![0f32; 20_000 * 1000]);
        layer.forward_into(&floats, &mut output).unwrap();
        let of_floats = fbgemm::thread_buffer_bytes();
        let halves = vec![half::f16::from_f32(0.5); 20_000 * 64];
        let mut narrow = vec![half::f16::ZERO; 20_000 * 1000];
        layer.forward_into(&halves, &mut narrow).unwrap();
        // All rows converted at once would take 85 MB.
        let held = fbgemm::thread_buffer_bytes() - of_floats;
        assert!((1 << 20..5 << 20).contains(&held), "{held}");
        assert!(narrow.iter().zip(&output).all(|(narrow, wide)| *narrow == half::f16::from_f32(*wide)));
        fbgemm::release_thread_buffer();
        assert_eq!(fbgemm::thread_buffer_bytes(), 0);
        let single = [0.25f64; 64];
        layer.forward::<f64>(&single).unwrap();
        assert!((1..of_floats).contains(&fbgemm::thread_buffer_bytes()));
    })
    .join()
    .unwrap();
}
