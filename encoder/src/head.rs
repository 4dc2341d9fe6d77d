//! From a text's hidden states to its vector: pooling and what comes after it, or a classifier.

use crate::config::{Activation, Architecture, Config, read_json};
use crate::error::{Error, Result};
use crate::kernels::{gelu, gelu_tanh, max_pool, mean_pool, normalize, relu, tanh};
use crate::weights::Weights;
use fbgemm::{Linear, ModelFile};
use serde_json::Value;
use std::path::Path;

/// How a text's hidden states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean, as most models for sentences.
    #[default]
    Mean,
    /// The first one, that of `[CLS]` or `<s>`.
    Cls,
    /// The largest of each column.
    Max,
}

/// What runs once a text.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) pooling: Pooling,
    pub(crate) steps: Vec<Step>,
}

/// A step from one vector to the next.
#[derive(Debug)]
pub(crate) enum Step {
    Linear(Linear),
    Activate(fn(&mut [f32])),
    Normalize,
}

impl Head {
    /// The length of the vectors that it makes of hidden states of this width.
    pub(crate) fn outputs(&self, width: usize) -> usize {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Linear(layer) => Some(layer.out_features()),
            _ => None,
        });
        last.unwrap_or(width)
    }

    pub(crate) fn bytes(&self) -> usize {
        let of = |step: &Step| if let Step::Linear(layer) = step { layer.bytes() } else { 0 };
        self.steps.iter().map(of).sum()
    }

    /// A text's vector from its hidden states, of this width.
    pub(crate) fn run(
        &self,
        hidden: &[f32],
        width: usize,
        output: &mut [f32],
        spare: &mut [Vec<f32>; 2],
    ) -> Result<()> {
        let [vector, next] = spare;
        vector.resize(width, 0.0);
        match self.pooling {
            Pooling::Mean => mean_pool(hidden, vector),
            Pooling::Max => max_pool(hidden, vector),
            Pooling::Cls => vector.copy_from_slice(&hidden[..width]),
        }
        for step in &self.steps {
            match step {
                Step::Activate(activate) => activate(vector),
                Step::Normalize => normalize(vector),
                Step::Linear(layer) => {
                    next.resize(layer.out_features(), 0.0);
                    layer.forward_into(vector, next)?;
                    std::mem::swap(vector, next);
                }
            }
        }
        output.copy_from_slice(vector);
        Ok(())
    }

    /// A model's own classifier, on the first token.
    pub(crate) fn classifier(weights: &Weights, config: &Config, labels: usize) -> Result<Self> {
        let width = config.width;
        let head = |name: &str, outputs| weights.head(name, outputs, width).map(Step::Linear);
        let steps = match config.architecture {
            Architecture::Bert => {
                let pooler = format!("{}pooler.dense", weights.prefix);
                vec![head(&pooler, width)?, Step::Activate(tanh), head("classifier", labels)?]
            }
            Architecture::Roberta | Architecture::MpNet => {
                vec![head("classifier.dense", width)?, Step::Activate(tanh), head("classifier.out_proj", labels)?]
            }
            Architecture::DistilBert => {
                vec![head("pre_classifier", width)?, Step::Activate(relu), head("classifier", labels)?]
            }
        };
        Ok(Self { pooling: Pooling::Cls, steps })
    }
}

/// What `modules.json` of sentence-transformers says: where the transformer lies, and the head.
pub(crate) struct Modules {
    pub(crate) transformer: String,
    pub(crate) pooling: Pooling,
    /// Whether the tokens of a prompt count in the pooling.
    pub(crate) pools_prompts: bool,
    pub(crate) steps: Vec<Step>,
}

impl Modules {
    /// Nothing where the folder has no such file.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("modules.json");
        if !path.exists() {
            return Ok(None);
        }
        let json = read_json(&path)?;
        let invalid = |message: &str| Error::InvalidFile { path: path.clone(), message: message.to_string() };
        let (pooling, steps) = (Pooling::Mean, Vec::new());
        let mut modules = Self { transformer: String::new(), pooling, pools_prompts: true, steps };
        for (i, module) in json.as_array().ok_or_else(|| invalid("expected a list"))?.iter().enumerate() {
            let (Some(kind), Some(place)) = (module["type"].as_str(), module["path"].as_str()) else {
                return Err(invalid("expected each module's type and path"));
            };
            if place.split('/').any(|part| part == "..") || place.starts_with('/') {
                return Err(invalid("a module's path leads out of the folder"));
            }
            match (i, kind.rsplit('.').next().unwrap_or(kind)) {
                (0, "Transformer") => modules.transformer = place.to_string(),
                (1, "Pooling") => {
                    let path = folder.join(place).join("config.json");
                    let json = read_json(&path)?;
                    modules.pooling = self::pooling(&json)?;
                    modules.pools_prompts = json["include_prompt"] != Value::Bool(false);
                }
                (2.., "Dense") => modules.steps.extend(dense(&folder.join(place))?),
                (2.., "Normalize") => modules.steps.push(Step::Normalize),
                _ => {
                    let expected = "Transformer, Pooling, and then Dense and Normalize";
                    return Err(Error::Unsupported { what: "module", given: kind.to_string(), expected });
                }
            }
        }
        Ok(Some(modules))
    }
}

/// Older versions have a switch for each kind, newer ones a word.
fn pooling(json: &Value) -> Result<Pooling> {
    let mut words: Vec<String> = match &json["pooling_mode"] {
        Value::String(word) => vec![word.clone()],
        Value::Array(words) => words.iter().map(|word| word.as_str().unwrap_or_default().to_string()).collect(),
        _ => {
            let on = |(key, value): (&String, &Value)| (value == &Value::Bool(true)).then(|| key.clone());
            let switches = json.as_object().into_iter().flatten().filter_map(on);
            switches.filter(|key| key.starts_with("pooling_mode_")).collect()
        }
    };
    let word = if words.len() == 1 { words.remove(0) } else { words.join(" and ") };
    match word.trim_start_matches("pooling_mode_") {
        "mean" | "mean_tokens" => Ok(Pooling::Mean),
        "cls" | "cls_token" => Ok(Pooling::Cls),
        "max" | "max_tokens" => Ok(Pooling::Max),
        _ => Err(Error::Unsupported { what: "pooling", given: word, expected: "mean, cls or max" }),
    }
}

/// A dense layer and its activation.
fn dense(folder: &Path) -> Result<Vec<Step>> {
    let path = folder.join("config.json");
    let json = read_json(&path)?;
    let layer = ModelFile::open(folder.join("model.safetensors"))?.linear("linear")?;
    let given = [&json["in_features"], &json["out_features"]].map(Value::as_u64);
    if given != [layer.in_features(), layer.out_features()].map(|size| Some(size as u64)) {
        let message = format!("{given:?}, but the layer is {} by {}", layer.in_features(), layer.out_features());
        return Err(Error::InvalidFile { path, message });
    }
    let word = json["activation_function"].as_str().unwrap_or("torch.nn.modules.linear.Identity");
    let activate: fn(&mut [f32]) = match word.rsplit('.').next().unwrap_or(word) {
        "Identity" => return Ok(vec![Step::Linear(layer)]),
        "Tanh" => tanh,
        "ReLU" => relu,
        "GELU" => gelu,
        _ => {
            let (given, expected) = (word.to_string(), "Identity, Tanh, ReLU or GELU");
            return Err(Error::Unsupported { what: "activation of a dense module", given, expected });
        }
    };
    Ok(vec![Step::Linear(layer), Step::Activate(activate)])
}

impl Activation {
    /// On some rows, in place.
    pub(crate) fn function(self) -> fn(&mut [f32]) {
        match self {
            Self::Gelu => gelu,
            Self::GeluTanh => gelu_tanh,
            Self::Relu => relu,
        }
    }
}
