//! The model of a service, and what a request's texts become.

use crate::error::{Error, Result};
use crate::gather::{Answer, Gatherer};
use crate::input::{Input, Passage};
use crate::metrics::Metrics;
use crate::options::ServiceOptions;
use crate::refusal::{Kind, Refusal};
use fbgemm_encoder::{Encoder, Tokens, Truncation, kernels};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// What a request gives beside its vectors.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub texts: usize,
    pub characters: usize,
    pub tokens: usize,
    pub tokenizing: Duration,
    pub queued: Duration,
    pub computed: Duration,
}

/// How to read texts.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub truncation: Truncation,
    /// Set before each text, instead of the model's own prompt.
    pub prompt: Option<String>,
}

/// What a model is for, by the labels that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Embed,
    /// One label: the score of a pair.
    Rerank,
    Classify,
}

impl Purpose {
    /// What to say to who asked for another.
    pub(crate) fn refuse(self, asked: &str) -> Refusal {
        let is = match self {
            Self::Embed => "an embedding model",
            Self::Rerank => "a reranker",
            Self::Classify => "a classifier",
        };
        Refusal::new(Kind::Model, format!("the model is {is}, not {asked}"))
    }
}

/// The model, with the threads that run it.
#[derive(Debug)]
pub(crate) struct Model {
    pub encoder: Arc<Encoder>,
    gatherer: Gatherer,
    metrics: Arc<Metrics>,
    /// Of those who tokenize long texts, as many as there are threads.
    tokenizing: Arc<Semaphore>,
}

impl Model {
    pub(crate) fn start(encoder: Encoder, options: &ServiceOptions, metrics: Arc<Metrics>) -> Result<Self> {
        let encoder = Arc::new(encoder);
        let gatherer =
            Gatherer::start(encoder.clone(), options.gathering(), metrics.clone()).map_err(Error::Threads)?;
        let tokenizing = Arc::new(Semaphore::new(options.threads));
        Ok(Self { encoder, gatherer, metrics, tokenizing })
    }

    /// What it is for.
    pub(crate) fn purpose(&self) -> Purpose {
        match self.encoder.labels() {
            None => Purpose::Embed,
            Some([_]) => Purpose::Rerank,
            Some(_) => Purpose::Classify,
        }
    }

    pub(crate) fn alive(&self) -> (usize, usize) {
        self.gatherer.alive()
    }

    /// A vector for each text, not normalized.
    pub(crate) async fn embed(&self, inputs: Vec<Input>, reading: Reading) -> Result<(Vec<f32>, Figures), Refusal> {
        if self.purpose() != Purpose::Embed {
            return Err(self.purpose().refuse("an embedding model"));
        }
        let characters = inputs.iter().map(Input::characters).sum();
        let bytes = inputs.iter().map(Input::bytes).sum();
        let encoder = self.encoder.clone();
        self.run(characters, bytes, move || read(&encoder, &inputs, &reading)).await
    }

    /// A logit for each label of each passage, one passage behind the other.
    pub(crate) async fn classify(
        &self,
        passages: Vec<Passage>,
        truncation: Truncation,
    ) -> Result<(Vec<f32>, Figures), Refusal> {
        if self.purpose() == Purpose::Embed {
            return Err(self.purpose().refuse("a classifier"));
        }
        let characters = passages.iter().map(Passage::characters).sum();
        let bytes = passages.iter().map(Passage::bytes).sum();
        let encoder = self.encoder.clone();
        let read = move || {
            let mut all = Tokens::new();
            for passage in &passages {
                // One by one: more at once would be shared out to threads that are not this service's.
                let tokens = match passage {
                    Passage::One(text) => encoder.tokenize_with(&[text], truncation),
                    Passage::Pair(first, second) => encoder.tokenize_pairs(&[(first, second)], truncation),
                };
                let tokens = tokens.map_err(too_long)?;
                all.push(tokens.ids(0), tokens.segments(0));
            }
            Ok(all)
        };
        self.run(characters, bytes, read).await
    }

    async fn run(
        &self,
        characters: usize,
        bytes: usize,
        read: impl FnOnce() -> Result<Tokens, Refusal> + Send + 'static,
    ) -> Result<(Vec<f32>, Figures), Refusal> {
        /// What takes a millisecond or so: less is no reason to change threads.
        const SHORT: usize = 8 << 10;
        let start = Instant::now();
        let tokens = if bytes <= SHORT {
            read()?
        } else {
            let permit = self.tokenizing.clone().acquire_owned().await.expect("it is never closed");
            let read = move || {
                let _permit = permit;
                read()
            };
            let panicked = |_| Refusal::new(Kind::Panic, "the tokenizer panicked");
            tokio::task::spawn_blocking(read).await.map_err(panicked)??
        };
        let mut figures = Figures { texts: tokens.texts(), characters, tokens: tokens.len(), ..Figures::default() };
        figures.tokenizing = start.elapsed();
        let Answer { vectors, queued, computed } = self.gatherer.run(tokens, self.encoder.outputs()).await?;
        (figures.queued, figures.computed) = (queued, computed);
        self.metrics.queued(queued);
        Ok((vectors, figures))
    }
}

fn read(encoder: &Encoder, inputs: &[Input], reading: &Reading) -> Result<Tokens, Refusal> {
    let mut all = Tokens::new();
    for input in inputs {
        match input {
            Input::Text(text) => {
                let prompt = reading.prompt.as_deref().unwrap_or(encoder.prompt());
                let tokens = encoder.tokenize_prompted(prompt, &[text], reading.truncation).map_err(too_long)?;
                all.push(tokens.ids(0), tokens.segments(0));
            }
            Input::Ids(ids) => {
                let cut = ids.len().saturating_sub(encoder.max_tokens());
                let ids = match reading.truncation {
                    Truncation::Left => &ids[cut..],
                    Truncation::Right => &ids[..ids.len() - cut],
                    _ => ids,
                };
                let mut tokens = Tokens::new();
                tokens.push(ids, &vec![0; ids.len()]);
                encoder.check_tokens(&tokens).map_err(too_long)?;
                if ids.len() > encoder.max_tokens() {
                    let (given, limit) = (ids.len(), encoder.max_tokens());
                    return Err(too_long(fbgemm_encoder::Error::WrongTokens { given, least: 1, limit }));
                }
                all.push(ids, tokens.segments(0));
            }
        }
    }
    Ok(all)
}

/// In text-embeddings-inference's words, where it has some.
fn too_long(error: fbgemm_encoder::Error) -> Refusal {
    let message = match error {
        fbgemm_encoder::Error::WrongTokens { given: 0, .. } => "`inputs` has a list of no token ids".to_string(),
        fbgemm_encoder::Error::WrongTokens { given, limit, .. } => {
            format!("`inputs` must have at most {limit} tokens. Given: {given}")
        }
        other => other.chain(),
    };
    Refusal::new(Kind::Invalid, message).field("input")
}

/// The first numbers of each vector, if not all are asked for, and scaled to length 1.
pub(crate) fn shape(mut vectors: Vec<f32>, outputs: usize, dimensions: usize, normalize: bool) -> Vec<f32> {
    if dimensions < outputs {
        let mut kept = 0;
        for start in (0..vectors.len()).step_by(outputs) {
            vectors.copy_within(start..start + dimensions, kept);
            kept += dimensions;
        }
        vectors.truncate(kept);
    }
    if normalize {
        vectors.chunks_exact_mut(dimensions).for_each(kernels::normalize);
    }
    vectors
}
