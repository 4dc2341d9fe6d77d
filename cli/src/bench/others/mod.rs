//! Other int8 libraries, as contenders: each behind a feature of the command, off by default.

#[cfg(feature = "ort")]
mod onnx;
#[cfg(feature = "ort")]
mod onnx_runtime;
#[cfg(feature = "rten")]
mod rten;
#[cfg(feature = "rten")]
pub mod rten_encoder;

use super::contender::Entry;

/// Those that this build has and this machine can run; of one that it can't, a line on stderr says what is missing.
pub fn entries() -> Vec<Entry> {
    let libraries: &[fn() -> Vec<Entry>] = &[
        #[cfg(feature = "rten")]
        rten::entries,
        #[cfg(feature = "ort")]
        onnx_runtime::entries,
    ];
    libraries.iter().flat_map(|entries| entries()).collect()
}
