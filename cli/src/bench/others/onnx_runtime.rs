//! ONNX Runtime, by a model of one operator.

use super::onnx;
use crate::bench::contender::{Contender, Entry, Layer};
use ort::AsPointer;
use ort::environment::Environment;
use ort::session::Session;
use ort::value::{TensorRef, TensorRefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

pub fn entries() -> Vec<Entry> {
    // One for the process: ONNX Runtime has it so.
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let said = |why: &String| {
        eprintln!(
            "ONNX Runtime is left out: {why}. Have a python3 with the package onnxruntime on PATH, or name the \
             library in ORT_DYLIB_PATH"
        );
    };
    match ENVIRONMENT.get_or_init(|| environment().inspect_err(said)) {
        Ok(environment) => vec![
            entry("onnxruntime int8", true, environment, onnx::dynamic_int8),
            entry("onnxruntime fp32", false, environment, |layer, rows| Ok(onnx::fp32(layer, rows))),
        ],
        Err(_) => Vec::new(),
    }
}

fn environment() -> Result<Environment, String> {
    let library = match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => python_library()?,
    };
    let builder = ort::init_from(library).map_err(|error| error.to_string())?;
    builder.with_telemetry(false).build().map_err(|error| error.to_string())
}

/// The library in the package `onnxruntime` of the python3 on PATH.
fn python_library() -> Result<PathBuf, String> {
    // Finds the package without the time to import it.
    const FIND: &str = "import importlib.util as u\n\
        s = u.find_spec('onnxruntime')\n\
        print(s.submodule_search_locations[0] if s else '', end='')";
    let found = Command::new("python3").args(["-c", FIND]).output();
    let found = found.map_err(|error| format!("python3 can't be run ({error})"))?;
    let package = String::from_utf8_lossy(&found.stdout);
    if !found.status.success() || package.is_empty() {
        return Err("the python3 on PATH has no package onnxruntime".into());
    }
    let folder = PathBuf::from(&*package).join("capi");
    let files = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    files
        .flatten()
        .find(|file| file.file_name().to_string_lossy().starts_with("libonnxruntime.so"))
        .map(|file| file.path())
        .ok_or_else(|| format!("{} has no libonnxruntime.so: the package is too old", folder.display()))
}

fn entry(
    name: &str,
    int8: bool,
    environment: &'static Environment,
    model: fn(Layer, usize) -> Result<Vec<u8>, String>,
) -> Entry {
    let make = move |layer: Layer, rows, threads| {
        let session = session(environment, &model(layer, rows)?, threads).map_err(|error| error.to_string())?;
        let Layer { out_features, in_features, .. } = layer;
        Ok(Some(Box::new(Model { session, rows, out_features, in_features }) as Box<dyn Contender>))
    };
    Entry { name: name.into(), int8, packs: true, make: Box::new(make) }
}

fn session(environment: &Environment, model: &[u8], threads: usize) -> ort::Result<Session> {
    Session::builder(environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        // Threads that spin would take time from the contenders that come after.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .commit_from_memory(model)
}

struct Model {
    session: Session,
    rows: usize,
    out_features: usize,
    in_features: usize,
}

impl Model {
    /// Reads the input and writes the output in place; [`Session::run`] would make a new output.
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> ort::Result<()> {
        let input = TensorRef::from_array_view(([self.rows, self.in_features], input))?;
        let output = TensorRefMut::from_array_view_mut(([self.rows, self.out_features], output))?;
        // SAFETY: `Run` reads one name and one value on either side, all of which outlive it here; it runs the
        // session on this thread alone, as `&mut self` has it to itself, keeps none of the pointers, and writes to
        // the output's elements, which `output` borrows mutably. `ort` checked both lengths against the shapes.
        // The status, which `result_from_status` takes over, is fresh from `Run`.
        unsafe {
            ort::Error::result_from_status((ort::api().Run)(
                self.session.ptr().cast_mut(),
                std::ptr::null(),
                &onnx::INPUT.as_ptr(),
                &input.ptr(),
                1,
                &onnx::OUTPUT.as_ptr(),
                1,
                &mut output.ptr().cast_mut(),
            ))
        }
    }
}

impl Contender for Model {
    fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
        self.run(input, output).map_err(|error| error.to_string())
    }
}
