//! The forms of `forward` that every linear layer has, written once.

/// The suggested number of tasks, up to `threads`, for a call that reads this many bytes of weight and does this many
/// multiply-adds, at this many a nanosecond: 1 where handing work to another thread would cost about as much as it saves.
pub(crate) fn suggested_tasks(bytes: usize, multiply_adds: usize, in_a_nanosecond: usize, threads: usize) -> usize {
    // Nanoseconds of work that a part must have, as waking another thread takes 30 to 80 thousand; and how many bytes of
    // the weight a core reads in one (benches/README.md).
    const LEAST: usize = 120_000;
    const READ: usize = 64;
    let time = (multiply_adds / in_a_nanosecond).max(if multiply_adds == 0 { 0 } else { bytes / READ });
    (time / LEAST).clamp(1, threads.clamp(1, crate::ffi::tasks::MAX_TASKS))
}

/// The methods, for a type with `out_features`, `in_features`, `suggested_tasks` and `run`, which takes what
/// `forward_tasks` takes.
macro_rules! forms {
    ($errors:literal) => {
        /// y = x·Wᵀ + b. `input` has any number of leading dimensions, row-major, the last being `in_features`; the
        /// result has the same, the last being `out_features`. Other types than `f32` are rounded to it first and the
        /// result is rounded to them, as PyTorch's quantized modules do.
        ///
        /// # Errors
        #[doc = $errors]
        pub fn forward<T: Element>(&self, input: &[T]) -> Result<Vec<T>> {
            let mut output = new_output(input, self.out_features(), self.in_features())?;
            self.forward_into(input, &mut output)?;
            Ok(output)
        }

        /// [`forward`](Self::forward) into the caller's buffer. After a thread's first call of a size this allocates
        /// nothing.
        ///
        /// # Errors
        /// As [`forward`](Self::forward), and [`Error::WrongLength`](crate::Error::WrongLength) for the output.
        pub fn forward_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
            self.run(input, output, 1, |task| task(0))
        }

        /// [`forward_into`](Self::forward_into) in `tasks` parts on the caller's threads.
        /// [`suggested_tasks`](Self::suggested_tasks) says how many pay off.
        ///
        /// `execute` is given the task: a function to call once with each number from 0 to `tasks` − 1, in any order, on
        /// any threads, before it returns. A number given twice is ignored the second time, as are numbers from `tasks`
        /// up. With one task the function is not called: the calling thread does the work.
        ///
        /// # Errors
        /// As [`forward_into`](Self::forward_into); [`Error::InvalidTasks`](crate::Error::InvalidTasks) unless `tasks` is
        /// 1 to 1024; [`Error::TasksLeft`](crate::Error::TasksLeft) if `execute` returned before every task had run, the
        /// output then being incomplete.
        pub fn forward_tasks<T: Element>(
            &self,
            input: &[T],
            output: &mut [T],
            tasks: usize,
            execute: impl FnOnce(&(dyn Fn(usize) + Sync)),
        ) -> Result<()> {
            self.run(input, output, tasks, execute)
        }

        /// [`forward_into`](Self::forward_into) on the current rayon pool's threads, in the
        /// [suggested number of tasks](Self::suggested_tasks).
        ///
        /// # Errors
        /// As [`forward_into`](Self::forward_into).
        #[cfg(feature = "rayon")]
        pub fn forward_rayon<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
            use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
            let rows = input.len() / self.in_features().max(1);
            let tasks = self.suggested_tasks(rows, rayon::current_num_threads());
            self.run(input, output, tasks, |task| (0..tasks).into_par_iter().with_max_len(1).for_each(task))
        }

        /// [`forward`](Self::forward) of a matrix with a row for each input, as the crate `ndarray` has them. One in
        /// standard layout (row-major, without gaps) is read where it is; of others a copy is made.
        ///
        /// # Errors
        /// As [`forward`](Self::forward), and [`Error::WrongLength`](crate::Error::WrongLength) for rows of another
        /// length.
        #[cfg(feature = "ndarray")]
        pub fn forward_array<T: Element>(&self, input: ndarray::ArrayView2<T>) -> Result<ndarray::Array2<T>> {
            super::arrays::forward(input, (self.out_features(), self.in_features()), |input| self.forward(input))
        }

        /// [`forward_array`](Self::forward_array) into the caller's matrix. With both in standard layout this allocates
        /// nothing after a thread's first call of a size; another output is computed apart and copied.
        ///
        /// # Errors
        /// As [`forward_array`](Self::forward_array), and [`Error::WrongLength`](crate::Error::WrongLength) for the
        /// output's rows and their length.
        #[cfg(feature = "ndarray")]
        pub fn forward_array_into<T: Element>(
            &self,
            input: ndarray::ArrayView2<T>,
            output: ndarray::ArrayViewMut2<T>,
        ) -> Result<()> {
            let shape = (self.out_features(), self.in_features());
            super::arrays::forward_into(input, output, shape, |input, output| self.forward_into(input, output))
        }

        /// Moves the cost of first calls to start-up: FBGEMM generates a kernel for each number of rows (up to
        /// its block of 56 to 384, and for each remainder beyond), once in a process; and each thread makes a buffer, so each
        /// thread of a pool should call this.
        ///
        /// # Errors
        /// As [`forward`](Self::forward).
        pub fn warm_up(&self, rows: impl IntoIterator<Item = usize>) -> Result<()> {
            for rows in rows {
                let input = zeroed::<f32>(check_size("input", rows, self.in_features())?)?;
                self.forward(&input)?;
            }
            Ok(())
        }
    };
}
pub(crate) use forms;
