//! What a model's `config.json` says: its architecture and sizes.

use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// A family of models: how its tensors are named, and what it does in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Bert,
    /// And XLM-RoBERTa and CamemBERT, which are the same but for the tokenizer.
    Roberta,
    DistilBert,
    MpNet,
}

/// What comes between an encoder's two inner layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Gelu,
    GeluTanh,
    Relu,
}

/// A model's sizes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) architecture: Architecture,
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) inner: usize,
    pub(crate) activation: Activation,
    pub(crate) epsilon: f32,
    pub(crate) vocabulary: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    pub(crate) padding: u32,
    /// Whether the model ends in labels, and their names.
    pub(crate) labels: Option<Vec<String>>,
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| Error::File { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::InvalidFile { path: path.to_path_buf(), message: format!("no JSON: {e}") })
}

impl Config {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::of(&read_json(path)?, path)
    }

    fn of(json: &Value, path: &Path) -> Result<Self> {
        let unsupported = |what, given: &str, expected| Error::Unsupported { what, given: given.to_string(), expected };
        let invalid = |message: String| Error::InvalidFile { path: path.to_path_buf(), message };
        let text = |key: &str| json[key].as_str();
        let kind = text("model_type").unwrap_or("(no model_type)");
        let architecture = match kind {
            "bert" => Architecture::Bert,
            "roberta" | "xlm-roberta" | "camembert" => Architecture::Roberta,
            "distilbert" => Architecture::DistilBert,
            "mpnet" => Architecture::MpNet,
            _ => {
                let expected = "bert, roberta, xlm-roberta, camembert, distilbert or mpnet";
                return Err(unsupported("model type", kind, expected));
            }
        };
        let distil = architecture == Architecture::DistilBert;
        let size = |key: &str| {
            let given = json[key].as_u64().and_then(|size| usize::try_from(size).ok());
            given.filter(|size| (1..1 << 24).contains(size)).ok_or_else(|| invalid(format!("{key}: {}", json[key])))
        };
        let one_of = |of_distil: &str, other: &str| size(if distil { of_distil } else { other });
        if let Some(kind) = text("position_embedding_type").filter(|kind| *kind != "absolute") {
            return Err(unsupported("position embedding", kind, "absolute"));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if json[key] == Value::Bool(true) {
                return Err(unsupported("model", key, "an encoder"));
            }
        }
        let word = text(if distil { "activation" } else { "hidden_act" }).unwrap_or("gelu");
        let activation = match word {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            _ => return Err(unsupported("activation", word, "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast or relu")),
        };
        let head = json["architectures"][0].as_str().unwrap_or_default();
        let labels = head.ends_with("ForSequenceClassification").then(|| labels(json));
        let config = Self {
            architecture,
            width: one_of("dim", "hidden_size")?,
            layers: one_of("n_layers", "num_hidden_layers")?,
            heads: one_of("n_heads", "num_attention_heads")?,
            inner: one_of("hidden_dim", "intermediate_size")?,
            activation,
            epsilon: json["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32,
            vocabulary: size("vocab_size")?,
            positions: size("max_position_embeddings")?,
            // MPNet's positions begin behind a padding of 1, whatever the vocabulary has.
            padding: match architecture {
                Architecture::MpNet => 1,
                _ => json["pad_token_id"].as_u64().map_or(1, |id| id as u32),
            },
            labels,
        };
        if !config.width.is_multiple_of(config.heads) {
            return Err(invalid(format!("{} heads for a width of {}", config.heads, config.width)));
        }
        if config.offset() >= config.positions {
            return Err(invalid(format!("{} positions, {} of them for padding", config.positions, config.offset())));
        }
        Ok(config)
    }

    /// The position of a text's first token.
    pub(crate) fn offset(&self) -> usize {
        match self.architecture {
            Architecture::Bert | Architecture::DistilBert => 0,
            Architecture::Roberta | Architecture::MpNet => self.padding as usize + 1,
        }
    }

    /// The most tokens that a text can have.
    pub(crate) fn longest(&self) -> usize {
        self.positions - self.offset()
    }
}

/// By number; where there are no names, as `transformers` makes them up.
fn labels(json: &Value) -> Vec<String> {
    let names = json["id2label"].as_object();
    let count = names.map(|names| names.len()).or(json["num_labels"].as_u64().map(|n| n as usize)).unwrap_or(2);
    let name = |i: usize| names.and_then(|names| names.get(&i.to_string())?.as_str());
    (0..count).map(|i| name(i).map_or_else(|| format!("LABEL_{i}"), str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(json: Value) -> Result<Config> {
        Config::of(&json, Path::new("config.json"))
    }

    fn bert() -> Value {
        json!({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 12})
    }

    #[test]
    fn what_is_not_supported_is_named_by_its_own_word() {
        assert_eq!(of(bert()).unwrap().longest(), 12);
        for (key, value, word) in [
            ("model_type", json!("t5"), "t5"),
            ("hidden_act", json!("mish"), "mish"),
            ("position_embedding_type", json!("relative_key"), "relative_key"),
            ("is_decoder", json!(true), "is_decoder"),
        ] {
            let mut json = bert();
            json[key] = value;
            let error = of(json).unwrap_err();
            assert!(matches!(&error, Error::Unsupported { given, .. } if given == word), "{error}");
        }
    }

    #[test]
    fn sizes_that_can_not_be_are_errors() {
        for (key, value) in [
            ("hidden_size", json!(0)),
            ("hidden_size", json!(9)),
            ("vocab_size", json!(-3)),
            ("intermediate_size", json!("x")),
            ("num_hidden_layers", Value::Null),
            ("max_position_embeddings", json!(1u64 << 40)),
        ] {
            let mut json = bert();
            json[key] = value;
            assert!(matches!(of(json), Err(Error::InvalidFile { .. })), "{key}");
        }
    }
}
