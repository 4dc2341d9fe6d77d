//! OpenAI's endpoints for embeddings.

use crate::http::{Answered, Body};
use crate::input::Inputs;
use crate::model::{Reading, shape};
use crate::refusal::Refusal;
use crate::service::Service;
use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fbgemm_encoder::Truncation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

#[derive(Deserialize)]
struct Embeddings {
    input: Inputs,
    encoding_format: Option<Encoding>,
    dimensions: Option<usize>,
}

#[derive(Serialize)]
struct List<'v> {
    object: &'static str,
    data: Vec<Embedding<'v>>,
    model: &'v str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding<'v> {
    object: &'static str,
    index: usize,
    embedding: Vector<'v>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'v> {
    Float(&'v [f32]),
    /// Little-endian, as `numpy.frombuffer(..., dtype="float32")` reads.
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(service: Service, Body(body): Body) -> Result<Answered, Refusal> {
    let asked: Embeddings = serde_json::from_slice(&body).map_err(|e| Refusal::json(&e))?;
    service.check_count("input", asked.input.0.len())?;
    let dimensions = service.dimensions(asked.dimensions)?;
    let truncation = if service.options().truncate { Truncation::Right } else { Truncation::Refuse };
    let (vectors, figures) = service.model().embed(asked.input.0, Reading { truncation, prompt: None }).await?;
    let vectors = shape(vectors, service.model().encoder.outputs(), dimensions, true);
    let encoding = asked.encoding_format.unwrap_or_default();
    let embedding = |(index, vector)| {
        let embedding = match encoding {
            Encoding::Float => Vector::Float(vector),
            Encoding::Base64 => {
                Vector::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
            }
        };
        Embedding { object: "embedding", index, embedding }
    };
    let data = vectors.chunks_exact(dimensions).enumerate().map(embedding).collect();
    let usage = Usage { prompt_tokens: figures.tokens, total_tokens: figures.tokens };
    let list = List { object: "list", data, model: service.name(), usage };
    Answered::new(&list, figures, HeaderMap::new())
}

fn model(service: &Service) -> Value {
    json!({"id": service.name(), "object": "model", "created": service.started(), "owned_by": "fbgemm"})
}

/// `GET /v1/models`
pub(crate) fn models(service: &Service) -> Value {
    json!({"object": "list", "data": [model(service)]})
}
