//! How far a query is: rows through it, rows a second.

use datafusion::common::stats::Precision;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A bar on standard error, where that is a terminal.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// Of a plan that is about to run.
    pub fn new(plan: &Arc<dyn ExecutionPlan>, quiet: bool) -> Self {
        let total = rows_in(plan);
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let style = match total {
            Some(_) => "{elapsed_precise} {wide_bar} {human_pos} of {human_len} rows, {per_sec}, {eta} left",
            None => "{elapsed_precise} {spinner} {human_pos} rows, {per_sec}",
        };
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar, started: Instant::now() }
    }

    /// Of a plan that another process runs, which doesn't tell how far it is.
    pub fn elsewhere(quiet: bool) -> Self {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{elapsed_precise} {spinner} the scheduler's executors are at work");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(200));
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar, started: Instant::now() }
    }

    /// Shows how far the plan is, until it is dropped.
    pub async fn watch(&self, plan: &Arc<dyn ExecutionPlan>) {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.bar.set_position(rows_scored(plan));
        }
    }

    /// Takes the bar away, and says what was done.
    pub fn done(self, rows: u64, what: &str) {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        eprintln!("{what}: {} rows in {seconds:.1} s, {:.0} rows/s", HumanCount(rows), rows as f64 / seconds);
    }
}

/// How many rows the plan reads, where its files say.
fn rows_in(plan: &Arc<dyn ExecutionPlan>) -> Option<u64> {
    if plan.children().is_empty() {
        return match StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new()).ok()?.num_rows {
            Precision::Exact(rows) => Some(rows as u64),
            _ => None,
        };
    }
    plan.children().into_iter().map(rows_in).sum()
}

/// How many rows have come out of the operator that calls a model, or else out of the files.
fn rows_scored(plan: &Arc<dyn ExecutionPlan>) -> u64 {
    let rows = || plan.metrics().and_then(|metrics| metrics.output_rows()).unwrap_or(0) as u64;
    if plan.children().is_empty() || displayable(plan.as_ref()).one_line().to_string().contains("sha256=") {
        return rows();
    }
    plan.children().into_iter().map(rows_scored).sum()
}
