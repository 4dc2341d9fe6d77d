//! A scheduler's process, and an executor's: Ballista's own, with the codec that carries the functions' calls.

use crate::End;
use crate::session::{logical_codec, physical_codec};
use crate::stores::environment;
use ballista_core::extension::ballista_scalar_functions;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::utils::default_session_builder;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::{create_scheduler, start_grpc_service_with_listener};
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;

/// A scheduler. It needs no model. Its jobs are in memory: if it ends, they are lost, and their clients say so.
#[derive(clap::Args)]
pub struct Scheduler {
    /// The address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,
    /// The port to listen at; 0 takes a free one, which the first line of output names
    #[arg(long, value_name = "N", default_value_t = 50050)]
    port: u16,
    /// The name or address by which executors reach it
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    external_host: String,
    /// An executor that has said nothing for so many seconds is dead, and its work given to others
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    executor_timeout: u64,
}

pub async fn scheduler(arguments: &Scheduler) -> Result<(), End> {
    let failed = |e: String| End::Failed(format!("scheduler: {e}"));
    let listener = TcpListener::bind((arguments.bind.as_str(), arguments.port)).await;
    let listener = listener.map_err(|e| failed(format!("{}:{}: {e}", arguments.bind, arguments.port)))?;
    let address = listener.local_addr().map_err(|e| failed(e.to_string()))?;
    let config = SchedulerConfig {
        bind_host: arguments.bind.clone(),
        bind_port: address.port(),
        external_host: arguments.external_host.clone(),
        executor_timeout_seconds: arguments.executor_timeout,
        no_executors_grace_period_seconds: arguments.executor_timeout,
        expire_dead_executor_interval_seconds: (arguments.executor_timeout / 4).clamp(1, 15),
        override_session_builder: Some(Arc::new(|config: SessionConfig| {
            let state = default_session_builder(config)?;
            Ok(SessionStateBuilder::new_from_existing(state).with_runtime_env(environment(None)?).build())
        })),
        override_logical_codec: Some(logical_codec()),
        override_physical_codec: Some(physical_codec()),
        ..Default::default()
    };
    config.validate().map_err(|e| failed(e.to_string()))?;
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(|e| failed(e.to_string()))?;
    let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config)).await;
    let scheduler = scheduler.map_err(|e| failed(e.to_string()))?;
    println!("scheduler at df://{address}");
    tokio::select! {
        ended = start_grpc_service_with_listener(listener, scheduler) => ended.map_err(|e| failed(e.to_string())),
        _ = crate::statements::interrupted() => Ok(()),
    }
}

/// An executor. It loads a model when a task first needs it, from the path that the plan names, if its content is the
/// plan's.
#[derive(clap::Args)]
pub struct Executor {
    /// The scheduler's host and port
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:50050")]
    scheduler: String,
    /// The address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,
    /// The name or address by which others reach it; without one, the one that the scheduler sees
    #[arg(long, value_name = "HOST")]
    external_host: Option<String>,
    /// The port from which others fetch what it has computed
    #[arg(long, value_name = "N", default_value_t = 50051)]
    port: u16,
    /// The port at which it takes tasks
    #[arg(long, value_name = "N", default_value_t = 50052)]
    grpc_port: u16,
    /// How many tasks run at once, and how many threads they share
    #[arg(long, value_name = "N", default_value_t = crate::cpus())]
    pub threads: usize,
    /// Where it keeps what it has computed until it is fetched; without one, a temporary folder
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// How often it tells the scheduler that it is alive: a few times in --executor-timeout
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    heartbeat: u64,
}

pub async fn executor(arguments: &Executor) -> Result<(), End> {
    let failed = |e: String| End::Failed(format!("executor: {e}"));
    let (host, port) = match arguments.scheduler.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => (host.trim_start_matches("df://").to_string(), port),
        _ => return Err(End::BadUsage(format!("--scheduler {}, expected HOST:PORT", arguments.scheduler))),
    };
    let temporary = tempfile::Builder::new().prefix("fbgemm-executor-").tempdir().map_err(|e| failed(e.to_string()))?;
    let work_dir = arguments.work_dir.as_deref().unwrap_or(temporary.path()).to_path_buf();
    let spill = work_dir.clone();
    let work_dir = work_dir.to_str().ok_or_else(|| End::BadUsage("--work-dir is not UTF-8".to_string()))?.to_string();
    let config = ExecutorProcessConfig {
        bind_host: arguments.bind.clone(),
        external_host: arguments.external_host.clone(),
        port: arguments.port,
        grpc_port: arguments.grpc_port,
        scheduler_host: host,
        scheduler_port: port,
        scheduler_connect_timeout_seconds: 30,
        vcores: arguments.threads,
        work_dir: Some(work_dir),
        executor_heartbeat_interval_seconds: arguments.heartbeat,
        // Shuffle data of jobs that no one asked the scheduler to forget.
        job_data_ttl_seconds: 24 * 3600,
        job_data_clean_up_interval_seconds: 1800,
        override_runtime_producer: Some(Arc::new(move |_: &SessionConfig| environment(Some(&spill)))),
        override_function_registry: Some(Arc::new(functions())),
        override_logical_codec: Some(logical_codec()),
        override_physical_codec: Some(physical_codec()),
        ..Default::default()
    };
    start_executor_process(Arc::new(config)).await.map_err(|e| failed(e.to_string()))
}

/// DataFusion's functions. Ballista's own choice for executors lacks those of lists, which its schedulers plan with.
fn functions() -> BallistaFunctionRegistry {
    let mut functions = BallistaFunctionRegistry::default();
    functions.scalar_functions.extend(ballista_scalar_functions().into_iter().map(|f| (f.name().to_string(), f)));
    functions
}
