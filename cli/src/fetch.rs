//! The model that the command runs, fetched with a progress bar.

use fbgemm_testkit::minilm::Files;
use indicatif::{ProgressBar, ProgressStyle};

/// all-MiniLM-L6-v2, complete and checked.
pub fn minilm() -> Result<Files, String> {
    let mut bar: Option<ProgressBar> = None;
    let files = Files::fetch(&mut |done, total| bar.get_or_insert_with(|| progress_bar(total)).set_position(done));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    files
}

/// On a terminal only: indicatif hides it elsewhere.
fn progress_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("fetching {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(total).with_style(style.expect("a fixed template")).with_message("all-MiniLM-L6-v2")
}
