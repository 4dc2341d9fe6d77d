//! Signals that ask the command to end: work stops where nothing half done is left.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The signal that has come, from when this is made on.
pub struct Flag(Arc<AtomicUsize>);

impl Flag {
    pub fn new() -> Self {
        let flag = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // Where a signal can't be caught it ends the command at once, as it would have.
            let _ = signal_hook::flag::register_usize(signal, flag.clone(), signal as usize);
        }
        Self(flag)
    }

    /// Whether to go on.
    pub fn as_control_flow(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::Relaxed) == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Ends the command as the signal does, so that whoever started it sees that.
    pub fn end(&self) {
        let signal = self.0.load(Ordering::Relaxed);
        let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
    }
}
