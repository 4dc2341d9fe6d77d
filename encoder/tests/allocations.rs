//! After a thread's first calls of a size, tokens become vectors without an allocation.

use fbgemm_encoder::{Encoder, EncoderOptions, Tokens};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator, called with what this one is called with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn vectors_allocate_nothing_in_steady_state() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-dense");
    let encoder = Encoder::open(folder, &EncoderOptions::new()).unwrap();
    let mut tokens = Tokens::new();
    for length in [3, 40, 17, 60, 1, 64, 64, 64, 64] {
        tokens.push(&vec![7; length], &vec![0; length]);
    }
    let mut output = vec![0.0; tokens.texts() * encoder.outputs()];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let count = pool.install(|| {
        let mut run = || {
            let before = COUNT.get();
            encoder.embed_tokens(&tokens, &mut output).unwrap();
            COUNT.get() - before
        };
        assert!(run() > 0, "the first call makes its buffers");
        run();
        run()
    });
    assert_eq!(count, 0);
}
