//! One call in several parts, on the caller's threads, each with its own part of the output.

use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The most tasks that one call can be split into.
pub(crate) const MAX_TASKS: usize = 1024;

/// Runs `work` once with each number below `tasks`. `execute` calls what it is given once with each of them, on any
/// threads; a number given twice is ignored the second time. One task runs on this thread, without `execute`.
///
/// # Errors
/// [`Error::InvalidTasks`]; one of `work`'s; [`Error::TasksLeft`] where `execute` left some out.
pub(crate) fn run(
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    if !(1..=MAX_TASKS).contains(&tasks) {
        return Err(Error::InvalidTasks { given: tasks, limit: MAX_TASKS });
    }
    if tasks == 1 {
        return work(0);
    }
    let claimed = [const { AtomicU64::new(0) }; MAX_TASKS / 64];
    let ran = AtomicUsize::new(0);
    let error = OnceLock::new();
    execute(&|task| {
        let bit = 1 << (task % 64);
        if task >= tasks || claimed[task / 64].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        match work(task) {
            Ok(()) => drop(ran.fetch_add(1, Ordering::AcqRel)),
            Err(e) => drop(error.set(e)),
        }
    });
    match (error.into_inner(), ran.into_inner()) {
        (Some(e), _) => Err(e),
        (None, ran) if ran == tasks => Ok(()),
        (None, ran) => Err(Error::TasksLeft { ran, tasks }),
    }
}

/// An output that tasks write to, each to a part of its own.
pub(crate) struct SharedOutput<'a, T> {
    start: *mut T,
    len: usize,
    /// It is borrowed as long as any task may write.
    _output: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared reference gives no access but through `part` and `start`, which are unsafe: their callers see to it
// that no two tasks touch the same elements.
unsafe impl<T: Send> Sync for SharedOutput<'_, T> {}

impl<'a, T> SharedOutput<'a, T> {
    pub(crate) fn new(output: &'a mut [T]) -> Self {
        Self { start: output.as_mut_ptr(), len: output.len(), _output: PhantomData }
    }

    /// Where it starts.
    #[cfg(fbgemm_linked)]
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }

    /// # Safety
    /// No other part that is in use overlaps this one.
    ///
    /// # Panics
    /// If the range is not within the output.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range is within the output, which is borrowed mutably for as long as `self` lives; the caller
        // vouches that nothing else uses this part.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Splits the output's rows over tasks, at multiples of `unit` rows, and runs `work` with the numbers of a task's rows
/// and their part of the output.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// If the output is not a whole number of rows.
pub(crate) fn by_rows<T: Send>(
    output: &mut [T],
    width: usize,
    unit: usize,
    tasks: usize,
    execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
    work: impl Fn(Range<usize>, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    assert!(output.len().is_multiple_of(width));
    let rows = output.len() / width;
    let units = rows.div_ceil(unit);
    let output = SharedOutput::new(output);
    run(tasks, execute, |task| {
        // At most 2³¹ rows and 2¹⁰ tasks: no product leaves 64 bits.
        let edge = |task: usize| (units * task / tasks * unit).min(rows);
        let part = edge(task)..edge(task + 1);
        // SAFETY: `run` gives each number to one call only, and the parts of different numbers do not overlap, as
        // `edge` never falls.
        let rows = unsafe { output.part(part.start * width..part.end * width) };
        if rows.is_empty() { Ok(()) } else { work(part, rows) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rows_on_any_threads_are_each_written_once(
            rows in 0usize..300, width in 1usize..9, unit in 1usize..50, tasks in 1usize..40, threads in 1usize..5,
        ) {
            let mut output = vec![0usize; rows * width];
            let execute = |task: &(dyn Fn(usize) + Sync)| {
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        // Each number by two threads, and numbers that there are not.
                        scope.spawn(move || (0..tasks + 3).for_each(|i| if i % threads != thread || threads == 1 { task(i) }));
                    }
                    (0..tasks).rev().for_each(task);
                });
            };
            by_rows(&mut output, width, unit, tasks, execute, |part, rows| {
                assert_eq!(rows.len(), part.len() * width);
                for (row, values) in part.zip(rows.chunks_mut(width)) {
                    values.iter_mut().for_each(|value| *value += row + 1);
                }
                Ok(())
            }).unwrap();
            prop_assert!(output.chunks(width).enumerate().all(|(row, values)| values.iter().all(|&x| x == row + 1)));
        }
    }

    #[test]
    fn every_row_is_given_to_one_task() {
        for (rows, unit, tasks) in [(0, 1, 3), (1, 1, 3), (10, 1, 3), (10, 4, 3), (7, 120, 2), (1000, 7, 1024)] {
            let mut output = vec![0u32; rows * 2];
            let each = |task: &(dyn Fn(usize) + Sync)| (0..tasks).rev().for_each(task);
            by_rows(&mut output, 2, unit, tasks, each, |part, rows| {
                assert!(part.start % unit == 0 && rows.len() == part.len() * 2);
                rows.iter_mut().for_each(|x| *x += 1);
                Ok(())
            })
            .unwrap();
            assert_eq!(output, vec![1; rows * 2]);
        }
    }
}
