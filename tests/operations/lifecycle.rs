//! The packed handle: shared by threads, freed exactly once.

use fbgemm::{PackedMatrix, QuantizedWeight};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::process::alone;
use fbgemm_testkit::random::normal;

fn weight(seed: u64) -> QuantizedWeight {
    fbgemm::quantize_weight(&normal(64 * 96, seed, 0.5), 64, 96).unwrap()
}

#[test]
fn eight_threads_on_one_handle_get_the_same_bits() {
    let q = weight(1);
    let packed = q.pack().unwrap();
    let input = |thread: usize| normal(5 * 96, thread as u64, 50.0);
    let alone: Vec<_> =
        (0..8).map(|thread| bits(&fbgemm::linear_int8_weight(&input(thread), &q, &packed, None).unwrap())).collect();
    std::thread::scope(|threads| {
        for (thread, alone) in alone.iter().enumerate() {
            let (q, packed) = (&q, &packed);
            threads.spawn(move || {
                for _ in 0..200 {
                    let together = fbgemm::linear_int8_weight(&input(thread), q, packed, None).unwrap();
                    assert_eq!(&bits(&together), alone);
                }
            });
        }
    });
}

#[test]
fn an_operation_within_an_executor_has_its_own_buffers() {
    let (q, other) = (weight(1), weight(2));
    let (packed, other_packed) = (q.pack().unwrap(), other.pack().unwrap());
    let input = normal(7 * 96, 3, 50.0);
    let (alone, other_alone) = (
        fbgemm::linear_int8_weight(&input, &q, &packed, None).unwrap(),
        fbgemm::linear_int8_weight(&input, &other, &other_packed, None).unwrap(),
    );
    let mut output = vec![0.0; 7 * 64];
    let layer = fbgemm::PortableLinear::new(q, None).unwrap().pack().unwrap();
    let execute = |task: &(dyn Fn(usize) + Sync)| {
        for i in 0..3 {
            task(i);
            let inner = fbgemm::linear_int8_weight(&input, &other, &other_packed, None).unwrap();
            assert_eq!(bits(&inner), bits(&other_alone));
        }
    };
    layer.forward_tasks(&input, &mut output, 3, execute).unwrap();
    assert_eq!(bits(&output), bits(&alone));
}

#[test]
fn handles_are_freed_exactly_once() {
    // In a process of its own: the count is the whole process's.
    alone("lifecycle::counting_handles", &[]);
}

#[test]
#[ignore = "counts every handle of its process"]
fn counting_handles() {
    let live = PackedMatrix::live;
    let q = weight(1);
    handles_live_and_die(live, {
        let q = q.clone();
        move || q.pack().unwrap()
    });
    {
        let _one = q.pack().unwrap();
        let _two = fbgemm::pack_matrix(q.data(), 96, 64).unwrap();
        assert_eq!(live(), 2);
    }
    assert_eq!(live(), 0, "dropped");
    let packed = q.pack().unwrap();
    std::thread::spawn(move || assert_eq!(packed.out_features(), 64)).join().unwrap();
    assert_eq!(live(), 0, "used and dropped by another thread");

    fbgemm::pack_matrix(&[1; 3], 2, 2).unwrap_err();
    assert_eq!(live(), 0, "after an error");
    let packed = q.pack().unwrap();
    fbgemm::linear_int8_weight(&[f32::NAN; 96], &q, &packed, None).unwrap_err();
    drop(packed);
    assert_eq!(live(), 0, "after an operation's error");
}

/// Counts handles of any kind over drops, moves across threads and panics, from none to none.
pub fn handles_live_and_die<T: Send + Sync + 'static>(live: fn() -> usize, new: impl Fn() -> T + Send + 'static) {
    assert_eq!(live(), 0);
    {
        let _two = (new(), new());
        assert_eq!(live(), 2);
    }
    assert_eq!(live(), 0, "dropped");

    let handle = new();
    let handle = std::thread::spawn(move || handle).join().unwrap();
    assert_eq!(live(), 1, "moved to a thread and back");
    std::thread::spawn(move || drop(handle)).join().unwrap();
    assert_eq!(live(), 0, "dropped by another thread");

    let shared = std::sync::Arc::new(new());
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn({
                let shared = shared.clone();
                move || drop(shared)
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(live(), 1);
    drop(shared);
    assert_eq!(live(), 0, "shared by threads");

    for _ in 0..100 {
        drop(new());
    }
    assert_eq!(live(), 0);

    let panicked = std::thread::spawn(move || {
        let _handle = new();
        panic!("with a handle alive");
    });
    assert!(panicked.join().is_err());
    assert_eq!(live(), 0, "after a panic");
}
