//! Statements, one by one: what COPY writes appears whole or not at all, all else is printed.

use crate::End;
use crate::destination::Destination;
use crate::progress::Progress;
use crate::session::Session;
use ballista_core::execution_plans::DistributedQueryExec;
use ballista_core::serde::protobuf::CancelJobParams;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::common::{TableReference, plan_err};
use datafusion::datasource::listing::{ListingTable, ListingTableConfig, ListingTableConfigExt, ListingTableUrl};
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{CopyToSource, DFParser, Statement};
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectNamePart, visit_relations_mut};
use datafusion_proto::protobuf::LogicalPlanNode;
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

pub async fn run(session: &Session, sql: &str, shown: usize, quiet: bool) -> Result<(), End> {
    for mut statement in DFParser::parse_sql(sql)? {
        name_files(&session.context, &mut statement).await?;
        match statement {
            Statement::CopyTo(mut copy) => {
                let destination = Destination::new(&session.context, &copy.target).await?;
                let target = std::mem::replace(&mut copy.target, destination.target());
                let written = work(session, Statement::CopyTo(copy), shown, quiet).await;
                let finished = match written {
                    Ok((count, progress)) => destination.finish(count).await.map(|()| (count, progress)),
                    Err(end) => Err(end),
                };
                match finished {
                    Ok((count, progress)) => report(progress, count, &format!("wrote {target}")),
                    Err(end) => {
                        destination.abandon().await;
                        return Err(end);
                    }
                }
            }
            other => {
                let scored =
                    matches!(&other, Statement::Statement(s) if s.to_string().to_uppercase().starts_with("SELECT"));
                let (count, progress) = work(session, other, shown, quiet).await?;
                if scored {
                    report(progress, count, "answered");
                }
            }
        }
    }
    Ok(())
}

/// Gives each file or folder that a query names in quotes a table's name: `'in/*.parquet'` is the table `in`. Plans on
/// their way to a scheduler can't have tables with points in their names.
async fn name_files(context: &SessionContext, statement: &mut Statement) -> Result<(), End> {
    let mut files = BTreeMap::new();
    visit_files(statement, &mut |name| drop(files.insert(name.to_string(), String::new())));
    for (file, name) in &mut files {
        let state = context.state();
        let listing =
            ListingTableConfig::new_with_multi_paths(paths(context, file).await?).infer_options(&state).await?;
        let listing = listing.infer_partitions_from_path(&state).await?.infer_schema(&state).await?;
        let provider = Arc::new(ListingTable::try_new(listing)?);
        let words = Path::new(file).file_stem().and_then(|stem| stem.to_str()).filter(|stem| *stem != "*");
        let words = words.or_else(|| Path::new(file).parent()?.file_name()?.to_str()).unwrap_or("file");
        let word: String =
            words.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
        let mut names = (1..).map(|i| if i == 1 { word.clone() } else { format!("{word}_{i}") });
        let free = names.find(|name| !context.table_exist(TableReference::bare(name.as_str())).unwrap_or(true));
        *name = free.unwrap_or(word);
        context.register_table(TableReference::bare(name.as_str()), provider)?;
    }
    visit_files(statement, &mut |name| {
        if let Some(known) = files.get(name.as_str()) {
            *name = known.clone();
        }
    });
    Ok(())
}

/// A file, a folder, or the files that a pattern names: a plan on its way to a scheduler loses patterns, and would read
/// the whole folder.
async fn paths(context: &SessionContext, file: &str) -> Result<Vec<ListingTableUrl>> {
    let Some(pattern) = file.find(['*', '?', '[']) else { return Ok(vec![ListingTableUrl::parse(file)?]) };
    let (folder, pattern) = file.split_at(file[..pattern].rfind('/').map_or(0, |slash| slash + 1));
    let url = ListingTableUrl::parse(if folder.is_empty() { "./" } else { folder })?.with_glob(pattern)?;
    let store = context.runtime_env().object_store(&url)?;
    let found: Vec<_> = url.list_all_files(&context.state(), store.as_ref(), "").await?.try_collect().await?;
    if found.is_empty() {
        return plan_err!("no file is named as '{file}'");
    }
    let base = url.object_store();
    found.iter().map(|file| ListingTableUrl::parse(format!("{}{}", base.as_str(), file.location))).collect()
}

fn visit_files(statement: &mut Statement, seen: &mut dyn FnMut(&mut String)) {
    let mut relation = |name: &mut ObjectName| {
        if let [ObjectNamePart::Identifier(identifier)] = &mut name.0[..]
            && identifier.quote_style == Some('\'')
        {
            seen(&mut identifier.value);
        }
        ControlFlow::<()>::Continue(())
    };
    let _ = match statement {
        Statement::Statement(statement) => visit_relations_mut(statement.as_mut(), relation),
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => visit_relations_mut(query.as_mut(), relation),
            CopyToSource::Relation(name) => relation(name),
        },
        Statement::Explain(explain) => {
            visit_files(&mut explain.statement, seen);
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    };
}

fn report(progress: Option<Progress>, count: u64, what: &str) {
    if let Some(progress) = progress {
        progress.done(count, what);
    }
}

/// Runs a statement to its end, unless a signal comes first. Gives the rows that it wrote or answered with.
async fn work(
    session: &Session,
    statement: Statement,
    shown: usize,
    quiet: bool,
) -> Result<(u64, Option<Progress>), End> {
    let context = &session.context;
    let copies = matches!(statement, Statement::CopyTo(_));
    let plan = context.state().statement_to_plan(statement).await?;
    if matches!(plan, LogicalPlan::Ddl(_) | LogicalPlan::Statement(_)) {
        context.execute_logical_plan(plan).await?.collect().await?;
        return Ok((0, None));
    }
    let frame = context.execute_logical_plan(plan).await?;
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let progress = if session.remote { Progress::elsewhere(quiet) } else { Progress::new(&plan, quiet) };
    let answer = async {
        let mut stream = execute_stream(Arc::clone(&plan), task)?;
        let (mut count, mut first) = (0, Vec::<RecordBatch>::new());
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if copies {
                count += batch.column(0).as_primitive::<UInt64Type>().values().iter().sum::<u64>();
                continue;
            }
            let room = shown.saturating_sub(count as usize);
            count += batch.num_rows() as u64;
            if room > 0 {
                first.push(batch.slice(0, room.min(batch.num_rows())));
            }
        }
        Ok::<_, End>((count, first))
    };
    let (count, first) = tokio::select! {
        answer = answer => answer?,
        () = async { if session.remote { std::future::pending().await } else { progress.watch(&plan).await } } => (0, vec![]),
        () = interrupted() => {
            cancel(&plan).await;
            return Err(End::Interrupted);
        }
    };
    if !copies {
        println!(
            "{}",
            pretty_format_batches_with_schema(plan.schema(), &first)
                .map_err(datafusion::error::DataFusionError::from)?
        );
        if count as usize > shown {
            println!("({} rows more; --rows shows them, COPY ... TO keeps them)", count as usize - shown);
        }
    }
    Ok((count, (!quiet).then_some(progress)))
}

/// Tells the scheduler that no one waits for the plan's answer.
async fn cancel(plan: &Arc<dyn ExecutionPlan>) {
    let Some(query) = plan.downcast_ref::<DistributedQueryExec<LogicalPlanNode>>() else { return };
    let shown = datafusion::physical_plan::displayable(plan.as_ref()).one_line().to_string();
    let url = shown.split("scheduler_url=").nth(1).and_then(|rest| rest.split_whitespace().next().map(str::to_string));
    if let (Some(job), Some(url)) = (query.job_id(), url)
        && let Ok(mut scheduler) = SchedulerGrpcClient::connect(url).await
    {
        let _ = scheduler.cancel_job(CancelJobParams { job_id: job.into() }).await;
    }
}

/// Until this process is asked to end.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup())) {
        (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) => {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => (), _ = hangup.recv() => () }
        }
        _ => std::future::pending().await, // then a signal ends the process as it would have
    }
}
