//! Signals that ask the command to end: work stops where nothing half done is left.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The signal that has come, from when this is made on.
pub struct Flag {
    signal: Arc<AtomicUsize>,
    let_go: Arc<AtomicBool>,
}

impl Flag {
    pub fn new() -> Self {
        let flag = Self { signal: Arc::default(), let_go: Arc::default() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // Where a signal can't be caught it ends the command at once, as it would have.
            let _ = signal_hook::flag::register_conditional_default(signal, flag.let_go.clone());
            let _ = signal_hook::flag::register_usize(signal, flag.signal.clone(), signal as usize);
        }
        flag
    }

    /// From now on a signal ends the command at once: for where nothing is left behind, and no one asks this flag.
    pub fn let_go(&self) {
        self.let_go.store(true, Ordering::SeqCst);
    }

    /// Whether to go on.
    pub fn as_control_flow(&self) -> ControlFlow<()> {
        if self.signal.load(Ordering::SeqCst) == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Ends the command as the signal does, so that whoever started it sees that.
    pub fn end(&self) {
        let signal = self.signal.load(Ordering::SeqCst);
        let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
    }
}
