//! Plans on their way between processes: a call takes its model's name, path and hash along.

use crate::error::Error;
use crate::function::Bound;
use crate::hash::ContentHash;
use crate::model::Model;
use crate::task::Task;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{Result, TableReference};
use datafusion::datasource::file_format::FileFormatFactory;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{AggregateUDF, Extension, HigherOrderUDF, LogicalPlan, ScalarUDF, WindowUDF};
use datafusion::physical_expr_common::physical_expr::PhysicalExpr;
use datafusion::physical_expr_common::physical_expr::proto_decode::PhysicalExprDecodeCtx;
use datafusion::physical_expr_common::physical_expr::proto_encode::PhysicalExprEncodeCtx;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use prost::Message;
use std::path::PathBuf;
use std::sync::Arc;

/// Carries the functions' calls, and leaves all else to another codec: Ballista's, or DataFusion's default.
///
/// It is a [`LogicalExtensionCodec`] around one, and a [`PhysicalExtensionCodec`] around one. The other side needs
/// no functions registered, only this codec: a call brings its own.
#[derive(Debug)]
pub struct ModelCodec<C: ?Sized>(Arc<C>);

impl<C: ?Sized> ModelCodec<C> {
    /// Around this codec.
    pub fn new(inner: Arc<C>) -> Self {
        Self(inner)
    }
}

/// A call on its way. Numbers of fields stay what they are, as in any protocol buffer.
#[derive(Clone, PartialEq, Message)]
struct Call {
    /// Of this message: 1.
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The function: embed, rerank, linear or embedding_bag.
    #[prost(string, tag = "2")]
    function: String,
    #[prost(string, tag = "3")]
    model: String,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(string, tag = "5")]
    sha256: String,
    #[prost(bool, tag = "6")]
    portable: bool,
    #[prost(uint64, optional, tag = "7")]
    max_tokens: Option<u64>,
    /// The layer's or table's name.
    #[prost(string, tag = "8")]
    part: String,
    #[prost(bool, tag = "9")]
    mean: bool,
    #[prost(uint32, tag = "10")]
    outputs: u32,
}

const VERSION: u32 = 1;

/// Whether it was one of the functions.
fn encode(function: &ScalarUDF, buffer: &mut Vec<u8>) -> Result<bool> {
    let Some(Bound { model, task, outputs, .. }) = function.inner().downcast_ref::<Bound>() else { return Ok(false) };
    let path = model.path().to_str().ok_or_else(|| Error::WrongPlan {
        name: function.name().to_string(),
        message: "its model's path is not UTF-8".to_string(),
    })?;
    let (part, mean) = match task {
        Task::Embed | Task::Rerank => (String::new(), false),
        Task::Linear { layer } => (layer.clone(), false),
        Task::EmbeddingBag { table, mean } => (table.clone(), *mean),
    };
    let call = Call {
        version: VERSION,
        function: task.kind().name().to_string(),
        model: model.name().to_string(),
        path: path.to_string(),
        sha256: model.hash().to_string(),
        portable: model.portable,
        max_tokens: model.max_tokens.map(|tokens| tokens as u64),
        part,
        mean,
        outputs: *outputs as u32,
    };
    buffer.extend(call.encode_to_vec());
    Ok(true)
}

/// The function of a call, if its name is that of one of these.
fn decode(name: &str, buffer: &[u8]) -> Option<Result<Arc<ScalarUDF>>> {
    let (function, _) = name.split_once('[')?;
    crate::task::Kind::ALL.iter().find(|kind| kind.name() == function)?;
    let wrong = |message: String| Error::WrongPlan { name: name.to_string(), message };
    let read = || {
        let call = Call::decode(buffer).map_err(|e| wrong(e.to_string()))?;
        if call.version != VERSION {
            return Err(wrong(format!("version {}, expected {VERSION}", call.version)));
        }
        let hash = ContentHash::parse(&call.sha256).ok_or_else(|| wrong(format!("the hash `{}`", call.sha256)))?;
        let mut model = Model::planned(call.model, PathBuf::from(call.path), hash);
        model.portable = call.portable;
        model.max_tokens = call.max_tokens.map(|tokens| tokens as usize);
        let task = match call.function.as_str() {
            "embed" => Task::Embed,
            "rerank" => Task::Rerank,
            "linear" => Task::Linear { layer: call.part },
            "embedding_bag" => Task::EmbeddingBag { table: call.part, mean: call.mean },
            other => return Err(wrong(format!("the function `{other}`"))),
        };
        Ok(Arc::new(ScalarUDF::from(Bound::planned(model, task, call.outputs as usize))))
    };
    Some(read().map_err(Into::into))
}

impl LogicalExtensionCodec for ModelCodec<dyn LogicalExtensionCodec> {
    fn try_decode(&self, buf: &[u8], inputs: &[LogicalPlan], ctx: &TaskContext) -> Result<Extension> {
        self.0.try_decode(buf, inputs, ctx)
    }

    fn try_encode(&self, node: &Extension, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode(node, buf)
    }

    fn try_decode_table_provider(
        &self,
        buf: &[u8],
        table_ref: &TableReference,
        schema: SchemaRef,
        ctx: &TaskContext,
    ) -> Result<Arc<dyn TableProvider>> {
        self.0.try_decode_table_provider(buf, table_ref, schema, ctx)
    }

    fn try_encode_table_provider(
        &self,
        table_ref: &TableReference,
        node: Arc<dyn TableProvider>,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        self.0.try_encode_table_provider(table_ref, node, buf)
    }

    fn try_decode_file_format(&self, buf: &[u8], ctx: &TaskContext) -> Result<Arc<dyn FileFormatFactory>> {
        self.0.try_decode_file_format(buf, ctx)
    }

    fn try_encode_file_format(&self, buf: &mut Vec<u8>, node: Arc<dyn FileFormatFactory>) -> Result<()> {
        self.0.try_encode_file_format(buf, node)
    }

    fn try_decode_udf(&self, name: &str, buf: &[u8]) -> Result<Arc<ScalarUDF>> {
        decode(name, buf).unwrap_or_else(|| self.0.try_decode_udf(name, buf))
    }

    fn try_encode_udf(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<()> {
        if encode(node, buf)? { Ok(()) } else { self.0.try_encode_udf(node, buf) }
    }

    fn try_decode_higher_order_function(&self, name: &str, buf: &[u8]) -> Result<Arc<HigherOrderUDF>> {
        self.0.try_decode_higher_order_function(name, buf)
    }

    fn try_encode_higher_order_function(&self, node: &HigherOrderUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode_higher_order_function(node, buf)
    }

    fn try_decode_udaf(&self, name: &str, buf: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.0.try_decode_udaf(name, buf)
    }

    fn try_encode_udaf(&self, node: &AggregateUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode_udaf(node, buf)
    }

    fn try_decode_udwf(&self, name: &str, buf: &[u8]) -> Result<Arc<WindowUDF>> {
        self.0.try_decode_udwf(name, buf)
    }

    fn try_encode_udwf(&self, node: &WindowUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode_udwf(node, buf)
    }
}

impl PhysicalExtensionCodec for ModelCodec<dyn PhysicalExtensionCodec> {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.0.try_decode(buf, inputs, ctx, proto_converter)
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        self.0.try_encode(node, buf, proto_converter)
    }

    fn try_decode_udf(&self, name: &str, buf: &[u8]) -> Result<Arc<ScalarUDF>> {
        decode(name, buf).unwrap_or_else(|| self.0.try_decode_udf(name, buf))
    }

    fn try_encode_udf(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<()> {
        if encode(node, buf)? { Ok(()) } else { self.0.try_encode_udf(node, buf) }
    }

    fn try_decode_higher_order_function(&self, name: &str, buf: &[u8]) -> Result<Arc<HigherOrderUDF>> {
        self.0.try_decode_higher_order_function(name, buf)
    }

    fn try_encode_higher_order_function(&self, node: &HigherOrderUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode_higher_order_function(node, buf)
    }

    fn try_decode_expr(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn PhysicalExpr>],
        ctx: &PhysicalExprDecodeCtx<'_>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        self.0.try_decode_expr(buf, inputs, ctx)
    }

    fn try_encode_expr(
        &self,
        node: &Arc<dyn PhysicalExpr>,
        buf: &mut Vec<u8>,
        ctx: &PhysicalExprEncodeCtx<'_>,
    ) -> Result<()> {
        self.0.try_encode_expr(node, buf, ctx)
    }

    fn try_decode_udaf(&self, name: &str, buf: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.0.try_decode_udaf(name, buf)
    }

    fn try_encode_udaf(&self, node: &AggregateUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode_udaf(node, buf)
    }

    fn try_decode_udwf(&self, name: &str, buf: &[u8]) -> Result<Arc<WindowUDF>> {
        self.0.try_decode_udwf(name, buf)
    }

    fn try_encode_udwf(&self, node: &WindowUDF, buf: &mut Vec<u8>) -> Result<()> {
        self.0.try_encode_udwf(node, buf)
    }
}
