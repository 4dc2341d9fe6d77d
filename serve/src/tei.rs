//! The endpoints of text-embeddings-inference.

use crate::http::{Answered, Body};
use crate::input::{Input, Inputs, Passage, Passages};
use crate::model::{Figures, Purpose, Reading, shape};
use crate::refusal::{Kind, Refusal};
use crate::service::Service;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use fbgemm_encoder::kernels::softmax_rows;
use fbgemm_encoder::{Pooling, Truncation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Instant;

#[derive(Deserialize, Clone, Copy, Default)]
enum Direction {
    #[serde(alias = "left")]
    Left,
    #[default]
    #[serde(alias = "right")]
    Right,
}

#[derive(Deserialize)]
struct Embed {
    inputs: Inputs,
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Direction,
    prompt_name: Option<String>,
    normalize: Option<bool>,
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct Rerank {
    query: String,
    texts: Vec<String>,
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Direction,
    #[serde(default)]
    raw_scores: bool,
    #[serde(default)]
    return_text: bool,
}

#[derive(Serialize)]
struct Rank<'t> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'t str>,
    score: f32,
}

#[derive(Deserialize)]
struct Predict {
    inputs: Passages,
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Direction,
    #[serde(default)]
    raw_scores: bool,
}

#[derive(Serialize)]
struct Prediction<'l> {
    score: f32,
    label: &'l str,
}

#[derive(Deserialize)]
struct Similarity {
    inputs: SimilarityInputs,
    parameters: Option<SimilarityParameters>,
}

#[derive(Deserialize)]
struct SimilarityInputs {
    source_sentence: String,
    sentences: Vec<String>,
}

#[derive(Deserialize, Default)]
struct SimilarityParameters {
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Direction,
    prompt_name: Option<String>,
}

impl Service {
    fn truncation(&self, truncate: Option<bool>, direction: Direction) -> Truncation {
        match (truncate.unwrap_or(self.options().truncate), direction) {
            (false, _) => Truncation::Refuse,
            (true, Direction::Left) => Truncation::Left,
            (true, Direction::Right) => Truncation::Right,
        }
    }

    fn prompt(&self, name: Option<&str>) -> Result<Option<String>, Refusal> {
        let Some(name) = name else { return Ok(None) };
        let encoder = &self.model().encoder;
        if let Some((_, text)) = encoder.prompts().find(|(known, _)| *known == name) {
            return Ok(Some(text.to_string()));
        }
        let known: Vec<&str> = encoder.prompts().map(|(name, _)| name).collect();
        let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
        Err(Refusal::new(Kind::Invalid, format!("`prompt_name` is `{name}`; the model has {known}")))
    }

    /// Refuses what are no texts, or more than can be.
    pub(crate) fn check_count(&self, name: &'static str, count: usize) -> Result<(), Refusal> {
        let limit = self.options().request_texts;
        if count == 0 {
            return Err(Refusal::new(Kind::Empty, format!("`{name}` cannot be empty")).field(name));
        }
        if count > limit {
            let message = format!("batch size {count} > maximum allowed batch size {limit}");
            return Err(Refusal::new(Kind::TooMany, message).field(name));
        }
        Ok(())
    }

    /// The length that vectors are to have.
    pub(crate) fn dimensions(&self, asked: Option<usize>) -> Result<usize, Refusal> {
        let outputs = self.model().encoder.outputs();
        match asked {
            Some(given) if !(1..=outputs).contains(&given) => {
                let message = format!("`dimensions` is {given}, expected 1 to {outputs}");
                Err(Refusal::new(Kind::Invalid, message).field("dimensions"))
            }
            asked => Ok(asked.unwrap_or(outputs)),
        }
    }
}

/// `POST /embed`
pub(crate) async fn embed(service: Service, Body(body): Body) -> Result<Answered, Refusal> {
    let start = Instant::now();
    let asked: Embed = serde_json::from_slice(&body).map_err(|e| Refusal::json(&e))?;
    service.check_count("inputs", asked.inputs.0.len())?;
    let dimensions = service.dimensions(asked.dimensions)?;
    let truncation = service.truncation(asked.truncate, asked.truncation_direction);
    let reading = Reading { truncation, prompt: service.prompt(asked.prompt_name.as_deref())? };
    let (vectors, figures) = service.model().embed(asked.inputs.0, reading).await?;
    let outputs = service.model().encoder.outputs();
    let vectors = shape(vectors, outputs, dimensions, asked.normalize.unwrap_or(true));
    let vectors: Vec<&[f32]> = vectors.chunks_exact(dimensions).collect();
    Answered::new(&vectors, figures, headers(&figures, start))
}

/// `POST /rerank`
pub(crate) async fn rerank(service: Service, Body(body): Body) -> Result<Answered, Refusal> {
    let start = Instant::now();
    let asked: Rerank = serde_json::from_slice(&body).map_err(|e| Refusal::json(&e))?;
    service.check_count("texts", asked.texts.len())?;
    let purpose = service.model().purpose();
    if purpose != Purpose::Rerank {
        return Err(purpose.refuse("a reranker"));
    }
    let truncation = service.truncation(asked.truncate, asked.truncation_direction);
    let Rerank { query, texts, raw_scores, return_text, .. } = asked;
    // The query is read once for each text: a long one and many texts would be hours of work in a small body.
    let (bytes, limit) = (query.len() * texts.len(), READ_AGAIN * service.options().body_bytes);
    if bytes > limit {
        let message = format!("the query's {} bytes, once for each text, are more than {limit}", query.len());
        return Err(Refusal::new(Kind::TooMany, message).field("query"));
    }
    let pairs = texts.iter().map(|text| Passage::Pair(query.clone(), text.clone())).collect();
    let (mut scores, figures) = service.model().classify(pairs, truncation).await?;
    if !raw_scores {
        scores.iter_mut().for_each(|score| *score = sigmoid(*score));
    }
    let rank = |(index, score)| Rank { index, text: return_text.then(|| texts[index].as_str()), score };
    let mut ranks: Vec<Rank> = scores.into_iter().enumerate().map(rank).collect();
    ranks.sort_by(|a, b| b.score.total_cmp(&a.score));
    Answered::new(&ranks, figures, headers(&figures, start))
}

/// How many times a body's size a query may come to, once for each of its texts.
const READ_AGAIN: usize = 8;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `POST /predict`
pub(crate) async fn predict(service: Service, Body(body): Body) -> Result<Answered, Refusal> {
    let start = Instant::now();
    let asked: Predict = serde_json::from_slice(&body).map_err(|e| Refusal::json(&e))?;
    let (passages, one) = match asked.inputs {
        Passages::One(passage) => (vec![passage], true),
        Passages::Many(passages) => (passages, false),
    };
    service.check_count("inputs", passages.len())?;
    let truncation = service.truncation(asked.truncate, asked.truncation_direction);
    let (mut scores, figures) = service.model().classify(passages, truncation).await?;
    let labels = service.model().encoder.labels().unwrap_or_default();
    match (asked.raw_scores, labels) {
        (true, _) => (),
        (false, [_]) => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
        (false, _) => softmax_rows(&mut scores, labels.len(), None),
    }
    let sorted = |scores: &[f32]| {
        let pairs = labels.iter().zip(scores);
        let mut predictions: Vec<_> = pairs.map(|(label, &score)| Prediction { score, label }).collect();
        predictions.sort_by(|a, b| b.score.total_cmp(&a.score));
        predictions
    };
    let predictions: Vec<Vec<Prediction>> = scores.chunks_exact(labels.len()).map(sorted).collect();
    let headers = headers(&figures, start);
    match &predictions[..] {
        [only] if one => Answered::new(only, figures, headers),
        all => Answered::new(&all, figures, headers),
    }
}

/// `POST /similarity`
pub(crate) async fn similarity(service: Service, Body(body): Body) -> Result<Answered, Refusal> {
    let start = Instant::now();
    let asked: Similarity = serde_json::from_slice(&body).map_err(|e| Refusal::json(&e))?;
    service.check_count("inputs.sentences", asked.inputs.sentences.len())?;
    let SimilarityParameters { truncate, truncation_direction, prompt_name } = asked.parameters.unwrap_or_default();
    let truncation = service.truncation(truncate, truncation_direction);
    let reading = Reading { truncation, prompt: service.prompt(prompt_name.as_deref())? };
    let texts = std::iter::once(asked.inputs.source_sentence).chain(asked.inputs.sentences);
    let (vectors, figures) = service.model().embed(texts.map(Input::Text).collect(), reading).await?;
    let outputs = service.model().encoder.outputs();
    let vectors = shape(vectors, outputs, outputs, true);
    let (source, others) = vectors.split_at(outputs);
    let dot = |other: &[f32]| source.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
    let similarities: Vec<f32> = others.chunks_exact(outputs).map(dot).collect();
    Answered::new(&similarities, figures, headers(&figures, start))
}

/// `GET /info`
pub(crate) fn info(service: &Service) -> Value {
    let (model, options) = (service.model(), service.options());
    let kind = if let Some(labels) = model.encoder.labels() {
        let to_label: serde_json::Map<String, Value> =
            labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
        let to_id: serde_json::Map<String, Value> =
            labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id))).collect();
        let kind = if model.purpose() == Purpose::Rerank { "reranker" } else { "classifier" };
        json!({kind: {"id2label": to_label, "label2id": to_id}})
    } else {
        let pooling = match model.encoder.pooling() {
            Pooling::Cls => "cls",
            Pooling::Max => "max",
            _ => "mean",
        };
        json!({"embedding": {"pooling": pooling}})
    };
    json!({
        "model_id": service.name(),
        "model_sha": null,
        "model_dtype": service.dtype(),
        "served_model_name": service.name(),
        "model_type": kind,
        "max_concurrent_requests": options.queue_texts,
        "max_input_length": model.encoder.max_tokens(),
        "max_batch_tokens": options.batch_tokens,
        "max_batch_requests": null,
        "max_client_batch_size": options.request_texts,
        "auto_truncate": options.truncate,
        "tokenization_workers": options.threads,
        "version": env!("CARGO_PKG_VERSION"),
        "sha": null,
        "docker_label": null,
        "embedding_size": model.encoder.outputs(),
    })
}

/// What it took, in milliseconds, where text-embeddings-inference says so.
fn headers(figures: &Figures, start: Instant) -> HeaderMap {
    let total = start.elapsed().as_millis() as u64;
    let numbers = [
        ("x-compute-time", total),
        ("x-compute-characters", figures.characters as u64),
        ("x-compute-tokens", figures.tokens as u64),
        ("x-total-time", total),
        ("x-tokenization-time", figures.tokenizing.as_millis() as u64),
        ("x-queue-time", figures.queued.as_millis() as u64),
        ("x-inference-time", figures.computed.as_millis() as u64),
    ];
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-compute-type"), HeaderValue::from_static("cpu"));
    for (name, number) in numbers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(number));
    }
    headers
}
