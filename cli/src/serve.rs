//! `fbgemm serve`: a model over HTTP.

use crate::Exit;
use crate::embed::{Scheme, encoder_options, pooling, scheme};
use crate::stdio::complain;
use fbgemm_encoder::Pooling;
use fbgemm_serve::{Error, Service, ServiceOptions};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// What to serve, where, and with which limits.
#[derive(clap::Args)]
pub struct Serve {
    /// The model's folder, as for `fbgemm embed`
    model: PathBuf,
    /// The port (0: one that is free, which the log's first line tells)
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The address to listen on; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// What clients must show as `Authorization: Bearer TOKEN`; best given as the variable, which other users can't see
    #[arg(long, env = "FBGEMM_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The model's name, as clients see it [default: the folder's]
    #[arg(long)]
    name: Option<String>,
    /// The linear layers that the file has in floats: accurate, portable, pytorch, fp16, or `stored` to leave them
    #[arg(long, value_name = "NAME", default_value = "accurate", value_parser = scheme)]
    scheme: Scheme,
    /// mean, cls or max, whatever the folder says
    #[arg(long, value_name = "NAME", value_parser = pooling)]
    pooling: Option<Pooling>,
    /// Cut texts behind so many tokens, whatever the folder says
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Whether texts that are too long are cut where a request does not say; else they are refused
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    auto_truncate: bool,
    /// How many threads compute
    #[arg(long, value_name = "N", default_value_t = ServiceOptions::new().threads)]
    threads: usize,
    /// The most tokens of a batch
    #[arg(long, value_name = "N", default_value_t = ServiceOptions::new().batch_tokens)]
    batch_tokens: usize,
    /// How many texts can wait; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = ServiceOptions::new().queue_texts)]
    queue: usize,
    /// The most texts of a request
    #[arg(long, value_name = "N", default_value_t = ServiceOptions::new().request_texts)]
    max_texts: usize,
    /// The most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = ServiceOptions::new().body_bytes)]
    max_body: usize,
    /// How many seconds a request may wait; later it is answered with 503
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    deadline: u64,
    /// How many seconds a client may take to send a request's head, its body, or to read some of the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    client_timeout: u64,
    /// What to log, to standard error; `info` has a line a request. Where it listens is told whatever the level
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug"])]
    log: String,
    /// How to write the log
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
}

pub fn run(arguments: &Serve) -> Exit {
    if let Err(e) = fbgemm::cpu_support() {
        return Exit::refused(&e);
    }
    start_log(arguments);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return refused(&format!("threads: {e}")),
    };
    runtime.block_on(serve(arguments))
}

fn refused(message: &str) -> Exit {
    complain!("error: {message}");
    Exit::BadInput
}

async fn serve(arguments: &Serve) -> Exit {
    // First, so that a port that is taken is known at once.
    let listener = match tokio::net::TcpListener::bind((arguments.host, arguments.port)).await {
        Ok(listener) => listener,
        Err(e) => return refused(&format!("{}, port {}: {e}", arguments.host, arguments.port)),
    };
    let encoder = encoder_options(&arguments.scheme, arguments.pooling, arguments.max_tokens);
    let service = match Service::open(&arguments.model, &encoder, options(arguments)) {
        Ok(service) => service,
        Err(Error::Model(fbgemm_encoder::Error::Fbgemm(e))) => return Exit::refused(&e),
        Err(e) => return refused(&e.to_string()),
    };
    let stop = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            async move {
                tokio::select! {
                    _ = interrupt.recv() => (),
                    _ = terminate.recv() => (),
                }
                // A second one does not wait for what is under way.
                tokio::spawn(async move {
                    let signal = tokio::select! {
                        _ = interrupt.recv() => 2,
                        _ = terminate.recv() => 15,
                    };
                    std::process::exit(128 + signal);
                });
            }
        }
        (Err(e), _) | (_, Err(e)) => return refused(&format!("signals: {e}")),
    };
    match listener.local_addr() {
        Ok(address) => tracing::info!(
            target: LISTENING,
            url = format!("http://{address}"),
            model = service.name(),
            threads = arguments.threads,
            token = arguments.token.is_some(),
            "listening"
        ),
        Err(e) => return refused(&e.to_string()),
    }
    fbgemm_serve::serve(listener, service, stop).await;
    Exit::Done
}

fn options(arguments: &Serve) -> ServiceOptions {
    let mut options = ServiceOptions::new();
    options.threads = arguments.threads;
    options.batch_tokens = arguments.batch_tokens;
    options.queue_texts = arguments.queue;
    options.request_texts = arguments.max_texts.min(arguments.queue);
    options.body_bytes = arguments.max_body;
    options.deadline = Duration::from_secs(arguments.deadline);
    let client = Duration::from_secs(arguments.client_timeout);
    (options.head_timeout, options.body_timeout, options.write_timeout) = (client, client, client);
    options.truncate = arguments.auto_truncate;
    options.token = arguments.token.clone();
    options.name = arguments.name.clone();
    options
}

/// The line that says where: whoever starts the service needs it, at any level.
const LISTENING: &str = "fbgemm::listening";

fn start_log(arguments: &Serve) {
    let level: Level = arguments.log.parse().expect("one of the possible values");
    let shown = Targets::new().with_default(level).with_target(LISTENING, Level::INFO);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let log = match arguments.log_format.as_str() {
        "json" => log.json().flatten_event(true).boxed(),
        _ => log.boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(shown)).init();
}
