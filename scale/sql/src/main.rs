//! The command `fbgemm-sql`.

#![deny(unsafe_code)]

mod cluster;
mod destination;
mod progress;
mod session;
mod statements;
mod stores;

use clap::{Args, Parser, Subcommand};
use datafusion::error::DataFusionError;
use fbgemm_datafusion::Model;
use session::Session;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// DataFusion's SQL, with functions that score rows by a quantized model: embed(text), rerank(query, text),
/// linear('layer', features), embedding_bag('table', indices).
///
/// `FROM` takes files and folders of Parquet, CSV and JSON lines in quotes, here or on S3. `COPY (SELECT ...) TO 'out/'
/// STORED AS PARQUET` writes a folder that appears when it is complete.
///
/// Exit codes: 0 done; 1 a query failed; 2 bad usage; 130 interrupted.
#[derive(Parser)]
#[command(name = "fbgemm-sql", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    query: Query,
}

#[derive(Subcommand)]
enum Role {
    /// Take queries and share their work among executors
    Scheduler(cluster::Scheduler),
    /// Do a scheduler's work
    Executor(cluster::Executor),
}

/// What to run, and with what.
#[derive(Args)]
struct Query {
    /// A model that queries can name: a folder with config.json, tokenizer.json and model.safetensors, or a safetensors
    /// file. On a cluster it must lie at the same path on every machine, with the same content
    #[arg(long = "model", value_name = "NAME=PATH", value_parser = named)]
    models: Vec<(String, PathBuf)>,
    /// How to quantize the linear layers that a model's file has in floats. `portable` has the same bits on every kind of
    /// CPU, `accurate` is nearer to the floats
    #[arg(long, value_name = "NAME", default_value = "accurate")]
    scheme: Scheme,
    /// Cut texts behind so many tokens, whatever the model's folder says
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// The statements to run, separated by semicolons
    #[arg(short, long = "command", value_name = "SQL", conflicts_with = "file")]
    command: Vec<String>,
    /// A file of statements (`-`: standard input, as without -c and -f)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A scheduler that runs the queries, as df://host:50050; without one, this process does
    #[arg(long, value_name = "URL")]
    scheduler: Option<String>,
    /// How many threads share the work
    #[arg(long, value_name = "N", default_value_t = cpus())]
    threads: usize,
    /// How many rows are taken through a query at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    batch_size: usize,
    /// How many rows of an answer are printed
    #[arg(long, value_name = "N", default_value_t = 40)]
    rows: usize,
    /// No progress, and no line about rows and time
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scheme {
    Accurate,
    Portable,
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() && !name.contains([':', '\'']) => {
            Ok((name.to_string(), path.into()))
        }
        _ => Err("expected NAME=PATH, the name without `:` and `'`".to_string()),
    }
}

/// As many as this process may use.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How the command ended.
enum End {
    Failed(String),
    BadUsage(String),
    Interrupted,
}

impl From<DataFusionError> for End {
    fn from(error: DataFusionError) -> Self {
        End::Failed(error.strip_backtrace())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.role {
        Some(Role::Scheduler(scheduler)) => {
            logging("info");
            runtime(cpus()).and_then(|runtime| runtime.block_on(cluster::scheduler(scheduler)))
        }
        Some(Role::Executor(executor)) => {
            logging("info");
            runtime(executor.threads).and_then(|runtime| runtime.block_on(cluster::executor(executor)))
        }
        None => {
            logging("off");
            runtime(arguments.query.threads).and_then(|runtime| {
                let ended = runtime.block_on(query(&arguments.query));
                runtime.shutdown_timeout(Duration::from_secs(10)); // a thread ends its batch
                destination::sweep();
                ended
            })
        }
    };
    let (message, code) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(End::Failed(message)) => (message, 1),
        Err(End::BadUsage(message)) => (message, 2),
        Err(End::Interrupted) => ("interrupted; nothing was left behind".to_string(), 130),
    };
    eprintln!("error: {message}");
    ExitCode::from(code)
}

fn logging(level: &str) {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
}

/// The threads that DataFusion works on, and rayon's, which embed texts.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, End> {
    if threads == 0 {
        return Err(End::BadUsage("--threads 0, expected 1 at least".to_string()));
    }
    let failed = |e: String| End::Failed(format!("{threads} threads: {e}"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| failed(e.to_string()))?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // Plans are walked by recursion: as much as Ballista's own programs give.
    builder.worker_threads(threads).enable_all().thread_stack_size(32 << 20);
    builder.build().map_err(|e| failed(e.to_string()))
}

async fn query(arguments: &Query) -> Result<(), End> {
    let sql = match (&arguments.command[..], &arguments.file) {
        ([], None) if std::io::stdin().is_terminal() => {
            return Err(End::BadUsage(
                "nothing to run, expected -c SQL, -f FILE, or statements on standard input".into(),
            ));
        }
        ([], file) => {
            let file = file.as_deref().filter(|file| file.as_os_str() != "-");
            let mut sql = String::new();
            match file {
                Some(file) => std::fs::read_to_string(file).map(|text| sql = text),
                None => std::io::stdin().read_to_string(&mut sql).map(drop),
            }
            .map_err(|e| {
                End::BadUsage(format!("{}: {e}", file.map_or("standard input".into(), |f| f.display().to_string())))
            })?;
            sql
        }
        (commands, _) => commands.join(";\n"),
    };
    if arguments.batch_size == 0 {
        return Err(End::BadUsage("--batch-size 0, expected 1 at least".to_string()));
    }
    let mut models = Vec::new();
    for (name, path) in &arguments.models {
        if models.iter().any(|model: &Model| model.name() == name) {
            return Err(End::BadUsage(format!("two models with the name `{name}`")));
        }
        let model = Model::open(name, path).map_err(|e| End::BadUsage(e.to_string()))?;
        let model = if arguments.scheme == Scheme::Portable { model.portable() } else { model };
        models.push(arguments.max_tokens.into_iter().fold(model, Model::max_tokens));
    }
    let session = match &arguments.scheduler {
        None => Session::local(arguments.threads, arguments.batch_size, models)?,
        Some(url) => Session::remote(url, arguments.batch_size, models).await?,
    };
    statements::run(&session, &sql, arguments.rows, arguments.quiet).await
}
