//! Where queries run: in this process, or by a scheduler.

use crate::stores::environment;
use ballista::prelude::{SessionConfigExt, SessionContextExt};
use ballista_core::serde::{BallistaLogicalExtensionCodec, BallistaPhysicalExtensionCodec};
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use datafusion_proto::physical_plan::PhysicalExtensionCodec;
use fbgemm_datafusion::{Model, ModelCodec, register};
use std::sync::Arc;

/// A context with the functions and the models.
pub struct Session {
    pub context: SessionContext,
    pub remote: bool,
}

impl Session {
    pub fn local(threads: usize, batch_size: usize, models: Vec<Model>) -> Result<Self> {
        // A file being written holds a row group in memory. One writes what eight threads embed, and more.
        let files = threads.div_ceil(8);
        let config = settings(SessionConfig::new().with_target_partitions(threads), batch_size)
            .set_usize("datafusion.execution.minimum_parallel_output_files", files);
        let context = SessionContext::new_with_config_rt(config, environment(None)?);
        register(&context, models);
        Ok(Self { context, remote: false })
    }

    pub async fn remote(url: &str, batch_size: usize, models: Vec<Model>) -> Result<Self> {
        let config = settings(SessionConfig::new_with_ballista(), batch_size)
            // A task is a part of a file: of row groups, however small the file.
            .set_usize("datafusion.optimizer.repartition_file_min_size", 0)
            .with_ballista_logical_extension_codec(logical_codec())
            .with_ballista_physical_extension_codec(physical_codec());
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(environment(None)?)
            .with_default_features()
            .build();
        let context = SessionContext::remote_with_state(url, state).await?;
        register(&context, models);
        Ok(Self { context, remote: true })
    }
}

/// A vector takes as much as a page of text: fewer rows at once than DataFusion's defaults, which are for numbers.
fn settings(config: SessionConfig, batch_size: usize) -> SessionConfig {
    config
        .with_information_schema(true)
        .with_batch_size(batch_size)
        // The writer keeps a row group in memory until it is full: 12 MB of vectors of 384.
        .set_usize("datafusion.execution.parquet.max_row_group_size", 8 * 1024)
}

/// Ballista's, and the functions' calls.
pub fn logical_codec() -> Arc<dyn LogicalExtensionCodec> {
    let ballista: Arc<dyn LogicalExtensionCodec> = Arc::new(BallistaLogicalExtensionCodec::default());
    Arc::new(ModelCodec::new(ballista))
}

/// Ballista's, and the functions' calls.
pub fn physical_codec() -> Arc<dyn PhysicalExtensionCodec> {
    let ballista: Arc<dyn PhysicalExtensionCodec> = Arc::new(BallistaPhysicalExtensionCodec::default());
    Arc::new(ModelCodec::new(ballista))
}
