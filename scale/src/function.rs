//! The functions as DataFusion calls them: as written in SQL, and bound to a model.

use crate::error::Error;
use crate::model::Model;
use crate::task::{Kind, Task};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;
use std::sync::Arc;

/// Gives a context's queries the functions, with these models.
///
/// Later calls replace the functions, and the models with them.
pub fn register(context: &SessionContext, models: impl IntoIterator<Item = Model>) {
    let models: Arc<[Model]> = models.into_iter().collect();
    for kind in Kind::ALL {
        context.register_udf(Function { kind, models: Arc::clone(&models), signature: any() }.into());
    }
}

/// Arguments of any types, which `coerce_types` checks. The same arguments give the same bits.
fn any() -> Signature {
    Signature::user_defined(Volatility::Immutable)
}

/// A function as written: it knows all models, and the call says which.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    kind: Kind,
    models: Arc<[Model]>,
    signature: Signature,
}

/// What a call's constants say.
struct Call {
    model: Model,
    task: Task,
    /// Where its rows' values are among the arguments.
    values: std::ops::Range<usize>,
}

impl Function {
    /// Where the rows' values are among so many arguments; constants are before and behind them.
    fn values(&self, types: &[DataType]) -> std::ops::Range<usize> {
        let count = types.len();
        match self.kind {
            Kind::Embed => count.saturating_sub(1)..count,
            Kind::Rerank => count.saturating_sub(2)..count,
            Kind::Linear => 1.min(count)..count,
            Kind::EmbeddingBag => 1.min(count)..2.min(count),
        }
    }

    /// Reads a call's constants: none where an argument is no constant.
    fn call<'s>(&self, types: &[DataType], constant: impl Fn(usize) -> Option<&'s ScalarValue>) -> crate::Result<Call> {
        let values = self.values(types);
        let text = |index: usize| -> crate::Result<Option<&str>> {
            if index >= types.len() || values.contains(&index) {
                return Ok(None);
            }
            let text = constant(index).and_then(|value| value.try_as_str()).flatten();
            text.map(Some).ok_or_else(|| self.kind.refuse(format!("argument {} is not a constant text", index + 1)))
        };
        let (first, last) = (text(0)?, text(values.end)?);
        let (model, task) = match self.kind {
            Kind::Embed => (self.model(first)?, Task::Embed),
            Kind::Rerank => (self.model(first)?, Task::Rerank),
            Kind::Linear | Kind::EmbeddingBag => {
                let first = first.ok_or_else(|| self.kind.refuse("given nothing"))?;
                let (model, part) = match first.split_once(':') {
                    Some((model, part)) => (Some(model), part),
                    None => (None, first),
                };
                let (model, part) = (self.model(model)?, part.to_string());
                if self.kind == Kind::Linear {
                    (model, Task::Linear { layer: part })
                } else {
                    let mean = match last.unwrap_or("sum") {
                        "sum" => false,
                        "mean" => true,
                        other => return Err(self.kind.refuse(format!("given '{other}'"))),
                    };
                    (model, Task::EmbeddingBag { table: part, mean })
                }
            }
        };
        Ok(Call { model, task, values })
    }

    fn model(&self, name: Option<&str>) -> crate::Result<Model> {
        let known = || match self.models.iter().map(Model::name).collect::<Vec<_>>().join(", ") {
            known if known.is_empty() => "none".to_string(),
            known => known,
        };
        match (name, &*self.models) {
            (Some(name), models) => {
                let model = models.iter().find(|model| model.name() == name);
                model.cloned().ok_or_else(|| Error::UnknownModel { given: name.to_string(), known: known() })
            }
            (None, [only]) => Ok(only.clone()),
            (None, _) => {
                let (function, example) = (self.kind.name(), self.kind.example());
                Err(Error::WhichModel { function, example, known: known() })
            }
        }
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let most = match self.kind {
            Kind::Embed => 2,
            Kind::Rerank | Kind::EmbeddingBag => 3,
            Kind::Linear => usize::MAX,
        };
        let values = self.values(given);
        if given.len() > most || values.is_empty() {
            return Err(self.kind.refuse(format!("given {} arguments", given.len())).into());
        }
        let mut types = given.to_vec();
        types.splice(values.clone(), self.kind.coerce(&given[values])?);
        Ok(types)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("{} has no type without its constants", self.name())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let call = self.call(&types, |index| args.scalar_arguments[index])?;
        let outputs = call.task.outputs(&call.model)?;
        Ok(Arc::new(Field::new(self.name(), call.task.result_type(outputs), true)))
    }

    /// Binds the call to its model, so that the plan names it.
    fn simplify(&self, mut args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let types = args.iter().map(|arg| info.get_data_type(arg)).collect::<Result<Vec<_>>>()?;
        let call = self.call(&types, |index| match &args[index] {
            Expr::Literal(value, _) => Some(value),
            _ => None,
        })?;
        let bound = Bound::new(call.model, call.task)?;
        args.truncate(call.values.end);
        let args = args.split_off(call.values.start);
        let function = ScalarFunction::new_udf(Arc::new(bound.into()), args);
        Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(function)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let types: Vec<DataType> = args.args.iter().map(ColumnarValue::data_type).collect();
        let call = self.call(&types, |index| match &args.args[index] {
            ColumnarValue::Scalar(value) => Some(value),
            ColumnarValue::Array(_) => None,
        })?;
        let bound = Bound::new(call.model, call.task)?;
        args.args.truncate(call.values.end);
        args.args.drain(..call.values.start);
        bound.invoke_with_args(args)
    }
}

/// A function of one model, whose arguments are the rows' values alone.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bound {
    pub(crate) model: Model,
    pub(crate) task: Task,
    /// The length of a row's vector, so that a plan can be read where the model is not.
    pub(crate) outputs: usize,
    name: String,
    signature: Signature,
}

impl Bound {
    fn new(model: Model, task: Task) -> crate::Result<Self> {
        let outputs = task.outputs(&model)?;
        Ok(Self::planned(model, task, outputs))
    }

    pub(crate) fn planned(model: Model, task: Task, outputs: usize) -> Self {
        let part = match &task {
            Task::Embed | Task::Rerank => String::new(),
            Task::Linear { layer } => format!(":{layer}"),
            Task::EmbeddingBag { table, mean } => format!(":{table} {}", if *mean { "mean" } else { "sum" }),
        };
        let scheme = if model.portable { " portable" } else { "" };
        let cut = model.max_tokens.map(|tokens| format!(" max_tokens={tokens}")).unwrap_or_default();
        let (function, path) = (task.kind().name(), model.path().display());
        let name = format!("{function}[{}{part} {path} sha256={}{scheme}{cut}]", model.name(), model.hash());
        Self { model, task, outputs, name, signature: any() }
    }
}

impl ScalarUDFImpl for Bound {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        Ok(self.task.kind().coerce(given)?)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.task.result_type(self.outputs))
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let columns = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<_>>>()?;
        let found = self.task.run(&self.model, &columns, self.outputs)?;
        Ok(if constant {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&found, 0)?)
        } else {
            ColumnarValue::Array(found)
        })
    }
}
