//! What a function does with its rows, once its model and layer are known.

use crate::arrays::{Features, Indices, Texts, is_text, numbers, rows_of, vector_type, vectors};
use crate::error::{Error, Result};
use crate::model::Model;
use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::Result as PlanResult;
use fbgemm::{BagOptions, InputGranularity, Linear, embedding_bag};
use std::sync::Arc;

/// A function by its name in SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Embed,
    Rerank,
    Linear,
    EmbeddingBag,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Embed, Kind::Rerank, Kind::Linear, Kind::EmbeddingBag];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Embed => "embed",
            Kind::Rerank => "rerank",
            Kind::Linear => "linear",
            Kind::EmbeddingBag => "embedding_bag",
        }
    }

    /// How a call names its model, where it must.
    pub(crate) fn example(self) -> &'static str {
        match self {
            Kind::Embed => "embed('model', text)",
            Kind::Rerank => "rerank('model', query, text)",
            Kind::Linear => "linear('model:layer', features)",
            Kind::EmbeddingBag => "embedding_bag('model:table', indices)",
        }
    }

    pub(crate) fn expected(self) -> &'static str {
        match self {
            Kind::Embed => "embed(text), or embed('model', text)",
            Kind::Rerank => "rerank(query, text), or rerank('model', query, text)",
            Kind::Linear => "linear('layer', features): a list of numbers, or several columns; or 'model:layer'",
            Kind::EmbeddingBag => {
                "embedding_bag('table', indices): a list of integers, and 'sum' or 'mean' behind it; or 'model:table'"
            }
        }
    }

    pub(crate) fn refuse(self, given: impl Into<String>) -> Error {
        Error::WrongArguments { function: self.name(), given: given.into(), expected: self.expected() }
    }

    /// The types that the rows' values are brought to, without the constants before and behind them.
    pub(crate) fn coerce(self, given: &[DataType]) -> Result<Vec<DataType>> {
        let refuse = || {
            let types: Vec<String> = given.iter().map(ToString::to_string).collect();
            self.refuse(format!("given {}", types.join(", ")))
        };
        match self {
            Kind::Embed | Kind::Rerank => {
                let count = if self == Kind::Embed { 1 } else { 2 };
                let text = |kind: &DataType| match kind {
                    DataType::Null => Some(DataType::Utf8),
                    kind => is_text(kind).then(|| kind.clone()),
                };
                let types: Option<Vec<DataType>> = given.iter().map(text).collect();
                types.filter(|types| types.len() == count).ok_or_else(refuse)
            }
            Kind::Linear => match given {
                [list] if list_of(list, DataType::is_numeric, DataType::Float32).is_some() => {
                    list_of(list, DataType::is_numeric, DataType::Float32).map(|list| vec![list]).ok_or_else(refuse)
                }
                columns if !columns.is_empty() && columns.iter().all(|kind| kind.is_numeric() || kind.is_null()) => {
                    Ok(vec![DataType::Float32; columns.len()])
                }
                _ => Err(refuse()),
            },
            Kind::EmbeddingBag => match given {
                [list] => {
                    list_of(list, DataType::is_integer, DataType::Int64).map(|list| vec![list]).ok_or_else(refuse)
                }
                _ => Err(refuse()),
            },
        }
    }
}

/// A list's type with elements of another, if its own are such. An untyped null, and an empty list, are lists of any.
fn list_of(list: &DataType, such: fn(&DataType) -> bool, element: DataType) -> Option<DataType> {
    let field = |field: &Field| {
        let fits = such(field.data_type()) || field.data_type().is_null();
        fits.then(|| Arc::new(Field::new(field.name(), element.clone(), true)))
    };
    match list {
        DataType::List(inner) => field(inner).map(DataType::List),
        DataType::LargeList(inner) => field(inner).map(DataType::LargeList),
        DataType::FixedSizeList(inner, length) => field(inner).map(|inner| DataType::FixedSizeList(inner, *length)),
        DataType::Null => Some(DataType::List(Arc::new(Field::new_list_field(element, true)))),
        _ => None,
    }
}

/// A function, and of the model what it needs beside the rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Embed,
    Rerank,
    Linear { layer: String },
    EmbeddingBag { table: String, mean: bool },
}

impl Task {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Task::Embed => Kind::Embed,
            Task::Rerank => Kind::Rerank,
            Task::Linear { .. } => Kind::Linear,
            Task::EmbeddingBag { .. } => Kind::EmbeddingBag,
        }
    }

    /// The length of a row's vector, by the model itself.
    pub(crate) fn outputs(&self, model: &Model) -> Result<usize> {
        match self {
            Task::Embed => Ok(model.encoder()?.outputs()),
            Task::Rerank => match model.encoder()?.outputs() {
                1 => Ok(1),
                given => Err(Error::NotAReranker { model: model.name().to_string(), given }),
            },
            Task::Linear { layer } => Ok(model.linear(layer)?.out_features()),
            Task::EmbeddingBag { table, .. } => Ok(model.table(table)?.dimension()),
        }
    }

    /// What a call gives.
    pub(crate) fn result_type(&self, outputs: usize) -> DataType {
        match self {
            Task::Rerank => DataType::Float32,
            _ => vector_type(outputs),
        }
    }

    /// Runs it over rows of the types that [`Kind::coerce`] gives.
    pub(crate) fn run(&self, model: &Model, columns: &[ArrayRef], outputs: usize) -> PlanResult<ArrayRef> {
        match self {
            Task::Embed => {
                let (texts, which) = Texts::new(&columns[0])?.distinct();
                let found = model.encoder()?.embed(&texts).map_err(|e| model.encoder_error(e))?;
                vectors(&found, &which, outputs)
            }
            Task::Rerank => {
                let (queries, texts) = (Texts::new(&columns[0])?, Texts::new(&columns[1])?);
                let rows = columns[0].len();
                let pairs: Vec<_> = (0..rows).map(|row| Some((queries.get(row)?, texts.get(row)?))).collect();
                let which = places(pairs.iter().map(Option::is_some));
                let pairs: Vec<(&str, &str)> = pairs.into_iter().flatten().collect();
                let scores = model.encoder()?.embed_pairs(&pairs).map_err(|e| model.encoder_error(e))?;
                Ok(numbers(&scores, &which))
            }
            Task::Linear { layer } => {
                let linear = model.linear(layer)?;
                let (features, valid) = match columns {
                    [list] if !list.data_type().is_numeric() => {
                        let lists = Features::new(list)?;
                        let (mut features, mut valid) = (Vec::new(), Vec::with_capacity(list.len()));
                        for row in lists.rows() {
                            valid.push(row.is_some());
                            if let Some(row) = row {
                                check_features(model, layer, row.len(), linear.in_features())?;
                                features.extend_from_slice(row);
                            }
                        }
                        (features, valid)
                    }
                    columns => {
                        check_features(model, layer, columns.len(), linear.in_features())?;
                        rows_of(columns)?
                    }
                };
                let found = forward(&linear, &features).map_err(|e| model.layer_error(layer, e))?;
                vectors(&found, &places(valid.into_iter()), outputs)
            }
            Task::EmbeddingBag { table, mean } => {
                let bags = Indices::new(&columns[0])?;
                let (mut indices, mut offsets, mut valid) =
                    (Vec::new(), Vec::new(), Vec::with_capacity(columns[0].len()));
                for bag in bags.rows() {
                    valid.push(bag.is_some());
                    if let Some(bag) = bag {
                        offsets.push(indices.len() as i64);
                        indices.extend_from_slice(bag);
                    }
                }
                let options = if *mean { BagOptions::new().mean() } else { BagOptions::new() };
                let embedding = model.table(table)?;
                let rows = embedding.table().map_err(|e| model.error(e))?;
                let found =
                    embedding_bag(rows, &indices, &offsets, options).map_err(|e| model.layer_error(table, e))?;
                vectors(&found, &places(valid.into_iter()), outputs)
            }
        }
    }
}

/// For each row its place among those that are there.
fn places(there: impl Iterator<Item = bool>) -> Vec<Option<usize>> {
    let mut next = 0;
    there.map(|there| there.then(|| (next, next += 1).0)).collect()
}

fn check_features(model: &Model, layer: &str, given: usize, expected: usize) -> Result<()> {
    if given == expected {
        return Ok(());
    }
    Err(Error::WrongFeatures { model: model.name().to_string(), layer: layer.to_string(), given, expected })
}

/// The layer's outputs, each row's the same in every batch: where the layer does not promise it, by the rows one by one.
fn forward(layer: &Linear, features: &[f32]) -> fbgemm::Result<Vec<f32>> {
    let promises = match layer {
        Linear::Int8(layer) => layer.input_scheme().granularity() != InputGranularity::PerTensor,
        _ => false,
    };
    if promises {
        return layer.forward(features);
    }
    let mut found = vec![0.0; features.len() / layer.in_features() * layer.out_features()];
    for (row, found) in features.chunks_exact(layer.in_features()).zip(found.chunks_exact_mut(layer.out_features())) {
        layer.forward_into(row, found)?;
    }
    Ok(found)
}
