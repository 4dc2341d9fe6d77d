//! The command `fbgemm`.

#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic; `stdio` has what does not

mod bench;
mod demo;
mod embed;
mod fetch;
mod info;
mod inspect;
mod interrupt;
mod quantize;
mod serve;
mod stdio;
mod table;
mod verify;
mod verify_embedding;
mod verify_recurrent;
mod verify_self;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use stdio::complain;

/// FBGEMM's int8 linear layers: shown at work, and checked against PyTorch.
///
/// Exit codes: 0 done; 1 a check did not hold; 2 bad usage, bad input, or an answer that could not be written; 3 this
/// CPU is not supported.
#[derive(Parser)]
#[command(name = "fbgemm", version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

// In the order of use, which `--help` keeps.
#[derive(Subcommand)]
enum Subcommands {
    /// Quantize, pack and run every linear layer of a real model (all-MiniLM-L6-v2), against fp32
    ///
    /// Fetches the model once, 83.5 MB, checked against a pinned hash.
    Demo {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show which FBGEMM this is, where it comes from, and what it uses on this CPU
    Info {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Quantize a checkpoint's linear layers, and store it
    ///
    /// A matrix named `LAYER.weight` counts as a linear layer's by its bias, the words of its name, and what the
    /// config.json beside it says, and so do the two of each cell of an LSTM, a GRU or an RNN; the report tells what spoke for each, and options say otherwise. Embeddings, norms
    /// and all else stay as they are.
    Quantize(Box<quantize::Quantize>),
    /// Turn texts into vectors with a BERT-class model's folder: a text a line in, a vector a line out
    ///
    /// A text's vector is the same whatever the texts beside it, and however many threads there are.
    Embed(Box<embed::Embed>),
    /// Serve a BERT-class model over HTTP, as text-embeddings-inference and OpenAI answer
    ///
    /// POST /embed, /rerank, /predict, /v1/embeddings; GET /health, /info, /metrics; a page to try it at /. SIGTERM and SIGINT let
    /// requests that are under way finish.
    Serve(Box<serve::Serve>),
    /// Show what is in a quantized model or checkpoint, and that it can be loaded
    Inspect {
        /// A safetensors file, an index of shards, a folder with one of them, or `-` for standard input
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run PyTorch's cases through this crate and compare every bit
    ///
    /// Case files are made by tests/golden/make_cases.py with a PyTorch of your own. Those of recurrent layers need PyTorch's
    /// own sigmoid and tanh, and are skipped in a build against a prefix, which has none.
    Verify {
        /// Case files (safetensors, format fbgemm-cases-1)
        #[arg(required_unless_present = "own")]
        files: Vec<PathBuf>,
        /// Check the cases that this command holds: whether this program, on this CPU, is bit-identical to PyTorch
        #[arg(long = "self")]
        own: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Time layers in int8 against fp32 and this machine's limits, results checked
    ///
    /// Contenders are this crate; the crates gemm and matrixmultiply; MKL, OpenBLAS or BLIS where the machine has one
    /// (or FBGEMM_RS_BLAS names its library). All run in turn, on pinned threads.
    Bench(Box<bench::Bench>),
}

/// How the command ended; the number is the exit code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Done = 0,
    /// A check did not hold.
    CheckFailed = 1,
    /// Bad usage, bad input, or an answer that could not be written.
    BadInput = 2,
    /// This CPU is not supported.
    UnsupportedCpu = 3,
}

impl Exit {
    /// Prints an error of the library and gives its exit code.
    fn refused(error: &fbgemm::Error) -> Self {
        complain!("error: {}", error.chain());
        match error {
            fbgemm::Error::UnsupportedCpu { .. }
            | fbgemm::Error::UnknownCpu { .. }
            | fbgemm::Error::UnsupportedTarget { .. } => Exit::UnsupportedCpu,
            _ => Exit::BadInput,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

fn main() -> Exit {
    let result = match Arguments::try_parse() {
        Ok(arguments) => run(arguments.command),
        Err(usage) if usage.use_stderr() => usage.exit(),
        Err(help) => stdio::unless_closed(help.print().and_then(|()| std::io::stdout().flush())).map(|()| Exit::Done),
    };
    result.unwrap_or_else(|e| {
        complain!("error: standard output: {e}");
        Exit::BadInput
    })
}

/// The command's exit, or why its answer could not be written.
fn run(command: Subcommands) -> std::io::Result<Exit> {
    match command {
        Subcommands::Demo { json } => demo::run(json),
        Subcommands::Info { json } => info::run(json),
        Subcommands::Quantize(arguments) => quantize::run(&arguments),
        Subcommands::Inspect { file, json } => inspect::run(&file, json),
        Subcommands::Embed(arguments) => embed::run(&arguments),
        Subcommands::Serve(arguments) => Ok(serve::run(&arguments)),
        Subcommands::Verify { files, own, json } => verify::run(&files, own, json),
        Subcommands::Bench(arguments) => bench::run(&arguments),
    }
}
