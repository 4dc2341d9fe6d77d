//! The whole: a model's folder opened, texts in, vectors out.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::head::{Head, Modules, Pooling, Step};
use crate::prompts::Prompts;
use crate::text::{TextTokenizer, Truncation};
use crate::tokens::Tokens;
use crate::transformer::{Scratch, Transformer};
use crate::weights::Weights;
use fbgemm::{Int8Scheme, LinearScheme, ModelFile};
use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How a model is opened.
///
/// ```no_run
/// use fbgemm_encoder::{Encoder, EncoderOptions, Pooling};
///
/// let options = EncoderOptions::new().pooling(Pooling::Mean).normalize(true).max_tokens(256);
/// let encoder = Encoder::open("all-MiniLM-L6-v2", &options)?;
/// # Ok::<(), fbgemm_encoder::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    scheme: Option<LinearScheme>,
    pooling: Option<Pooling>,
    normalize: Option<bool>,
    max_tokens: Option<usize>,
    prompt: Option<String>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl EncoderOptions {
    /// Linear layers in int8, [`Int8Scheme::accurate`]; all else as the folder says.
    pub fn new() -> Self {
        let scheme = Some(Int8Scheme::accurate().into());
        Self { scheme, pooling: None, normalize: None, max_tokens: None, prompt: None }
    }

    /// How to quantize the linear layers that the file has in floats; those that it has quantized stay as they are.
    pub fn scheme(self, scheme: impl Into<LinearScheme>) -> Self {
        Self { scheme: Some(scheme.into()), ..self }
    }

    /// Linear layers as the file has them: in fp32, or quantized.
    pub fn as_stored(self) -> Self {
        Self { scheme: None, ..self }
    }

    /// Another pooling than the folder's `1_Pooling` says; without one, it is the mean.
    pub fn pooling(self, pooling: Pooling) -> Self {
        Self { pooling: Some(pooling), ..self }
    }

    /// Whether vectors are scaled to length 1, whatever the folder's `modules.json` says.
    pub fn normalize(self, normalize: bool) -> Self {
        Self { normalize: Some(normalize), ..self }
    }

    /// Cuts texts behind so many tokens, `[CLS]` and `[SEP]` counted, instead of where the folder says; at most as many
    /// as the model has positions.
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    /// The prompt of this name, of those that sentence-transformers' configuration has, before every text, instead of its
    /// default one. An empty name: none.
    pub fn prompt(self, name: &str) -> Self {
        Self { prompt: Some(name.to_string()), ..self }
    }
}

impl EncoderOptions {
    /// The type of the linear layers' weights, as others name it: `int8` or `float16`, or `as stored`.
    pub fn dtype(&self) -> &'static str {
        match self.scheme {
            Some(LinearScheme::Int8(_)) => "int8",
            Some(LinearScheme::Fp16) => "float16",
            _ => "as stored",
        }
    }
}

/// A model that turns texts into vectors. `Send + Sync`: any number of threads can use one, and none waits for another.
///
/// ```no_run
/// use fbgemm_encoder::{Encoder, EncoderOptions};
///
/// let encoder = Encoder::open("all-MiniLM-L6-v2", &EncoderOptions::new())?;
/// let vectors = encoder.embed(&["a text", "another one"])?;
/// assert_eq!(vectors.len(), 2 * encoder.outputs());
/// # Ok::<(), fbgemm_encoder::Error>(())
/// ```
#[derive(Debug)]
pub struct Encoder {
    transformer: Transformer,
    head: Head,
    tokenizer: TextTokenizer,
    prompts: Prompts,
}

impl Encoder {
    /// Opens a model's folder, or one of a Hugging Face cache (`models--NAME`, whose snapshot is taken): `config.json`,
    /// `tokenizer.json`, `model.safetensors` or its shards, in floats or quantized by `fbgemm quantize`; and
    /// sentence-transformers' `modules.json` with what it names, where it is there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names what this package does not have; the others, what is wrong with the folder.
    pub fn open(folder: impl AsRef<Path>, options: &EncoderOptions) -> Result<Self> {
        let folder = model_folder(folder)?;
        let modules = Modules::read(&folder)?;
        let transformer = match &modules {
            Some(modules) => folder.join(&modules.transformer),
            None => folder.clone(),
        };
        let config = Config::read(&transformer.join("config.json"))?;
        let pools_prompts = modules.as_ref().is_none_or(|modules| modules.pools_prompts);
        let prompts = Prompts::read(&folder, options.prompt.as_deref(), pools_prompts)?;
        let tokenizer = TextTokenizer::read(&folder, &transformer, options.max_tokens, config.longest())?;
        let file = ModelFile::open(&transformer)?;
        let weights = Weights::new(&file, options.scheme)?;
        let mut head = match (modules, &config.labels) {
            (Some(modules), _) => Head { pooling: modules.pooling, steps: modules.steps },
            (None, Some(labels)) => Head::classifier(&weights, &config, labels.len())?,
            (None, None) => Head { pooling: Pooling::Mean, steps: Vec::new() },
        };
        if let Some(pooling) = options.pooling {
            head.pooling = pooling;
        }
        if let Some(normalize) = options.normalize {
            head.steps.retain(|step| !matches!(step, Step::Normalize));
            head.steps.extend(normalize.then_some(Step::Normalize));
        }
        let transformer = Transformer::load(&weights, &config)?;
        Ok(Self { transformer, head, tokenizer, prompts })
    }

    /// The length of a vector: the model's width, its dense head's outputs, or as many as it has labels.
    pub fn outputs(&self) -> usize {
        self.head.outputs(self.transformer.config().width)
    }

    /// The labels of a model that classifies, whose vectors are their logits; a reranker has one.
    pub fn labels(&self) -> Option<&[String]> {
        self.transformer.config().labels.as_deref()
    }

    /// How a text's hidden states become one vector.
    pub fn pooling(&self) -> Pooling {
        self.head.pooling
    }

    /// The most tokens that a text is cut to.
    pub fn max_tokens(&self) -> usize {
        self.tokenizer.longest()
    }

    /// What stands before every text: of sentence-transformers' configuration the default prompt, or the
    /// [one asked for](EncoderOptions::prompt). Nothing before pairs.
    pub fn prompt(&self) -> &str {
        self.prompts.chosen()
    }

    /// The prompts of sentence-transformers' configuration: names and texts.
    pub fn prompts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.prompts.all()
    }

    /// What the weights take in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.transformer.bytes() + self.head.bytes()
    }

    /// Whether a text's vector is the same, bit for bit, whatever the texts beside it: each layer quantizes its inputs per
    /// row, or with parameters of its own. So it is by default; not so with layers in floats or fp16, and not with inputs
    /// quantized per tensor, as a file can have them.
    pub fn is_batch_independent(&self) -> bool {
        self.transformer.is_batch_independent()
    }

    /// A vector for each text, one behind the other, by the threads of the current rayon pool. With inputs quantized
    /// per row (the default) a text's vector is the same, bit for bit, whatever the texts beside it and the threads.
    ///
    /// Texts of any length can be in one call: there is no padding. The empty text is one, too.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; those of the layers.
    pub fn embed<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<f32>> {
        self.vectors(&self.tokenize(texts)?)
    }

    /// [`embed`](Self::embed) for pairs of texts: what a cross-encoder reads, a query and a document.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn embed_pairs<T: AsRef<str> + Sync>(&self, pairs: &[(T, T)]) -> Result<Vec<f32>> {
        self.vectors(&self.tokenize_pairs(pairs, Truncation::Right)?)
    }

    /// The texts' tokens, cut to [`max_tokens`](Self::max_tokens).
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn tokenize<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Tokens> {
        self.tokenize_with(texts, Truncation::Right)
    }

    /// [`tokenize`](Self::tokenize) with a say in what becomes of texts that are too long.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; [`Error::WrongTokens`] for [`Truncation::Refuse`].
    pub fn tokenize_with<T: AsRef<str> + Sync>(&self, texts: &[T], truncation: Truncation) -> Result<Tokens> {
        self.tokenize_prompted(self.prompt(), texts, truncation)
    }

    /// [`tokenize_with`](Self::tokenize_with) with this prompt before each text, whatever the encoder's own.
    ///
    /// # Errors
    /// As [`tokenize_with`](Self::tokenize_with); [`Error::Unsupported`] for a prompt where the folder says that a prompt's
    /// tokens don't count in the pooling.
    pub fn tokenize_prompted<T: AsRef<str> + Sync>(
        &self,
        prompt: &str,
        texts: &[T],
        truncation: Truncation,
    ) -> Result<Tokens> {
        self.prompts.check(prompt)?;
        let prepare = |text| match prompt {
            "" => self.tokenizer.prepare(text),
            _ => self.tokenizer.prepare(&format!("{prompt}{text}")).into_owned().into(),
        };
        let texts: Vec<std::borrow::Cow<str>> = texts.iter().map(|text| prepare(text.as_ref())).collect();
        self.tokenizer.tokens(&texts, truncation, |text| text.as_ref().into())
    }

    /// The tokens of pairs of texts, as [`embed_pairs`](Self::embed_pairs) reads them.
    ///
    /// # Errors
    /// As [`tokenize_with`](Self::tokenize_with).
    pub fn tokenize_pairs<T: AsRef<str> + Sync>(&self, pairs: &[(T, T)], truncation: Truncation) -> Result<Tokens> {
        let prepare = |text: &'_ T| self.tokenizer.prepare(text.as_ref()).into_owned();
        let pairs: Vec<(String, String)> = pairs.iter().map(|(a, b)| (prepare(a), prepare(b))).collect();
        self.tokenizer.tokens(&pairs, truncation, |(a, b)| (a.as_str(), b.as_str()).into())
    }

    /// Checks tokens from elsewhere, as [`embed_tokens`](Self::embed_tokens) does.
    ///
    /// # Errors
    /// [`Error::WrongTokens`], [`Error::UnknownToken`], [`Error::UnknownSegment`].
    pub fn check_tokens(&self, tokens: &Tokens) -> Result<()> {
        let config = self.transformer.config();
        tokens.check(config.longest(), config.vocabulary, self.transformer.segments())
    }

    fn vectors(&self, tokens: &Tokens) -> Result<Vec<f32>> {
        let mut output = vec![0.0; tokens.texts() * self.outputs()];
        self.embed_tokens(tokens, &mut output)?;
        Ok(output)
    }

    /// [`embed`](Self::embed) for texts that are tokens already, to the caller's buffer. After a thread's first calls
    /// of a size this allocates nothing.
    ///
    /// # Errors
    /// [`Error::WrongTokens`], [`Error::UnknownToken`], [`Error::WrongOutput`]; those of the layers.
    pub fn embed_tokens(&self, tokens: &Tokens, output: &mut [f32]) -> Result<()> {
        let expected = tokens.texts() * self.outputs();
        if output.len() != expected {
            return Err(Error::WrongOutput { given: output.len(), expected });
        }
        self.check_tokens(tokens)?;
        let threads = rayon::current_num_threads();
        self.run(tokens, 0..tokens.texts(), piece(tokens.len(), threads), threads, output)
    }

    /// Halves the texts until what is left is a piece.
    fn run(
        &self,
        tokens: &Tokens,
        texts: Range<usize>,
        piece: usize,
        threads: usize,
        output: &mut [f32],
    ) -> Result<()> {
        let Range { start, end } = texts;
        if end == start {
            return Ok(());
        }
        let (first, last) = (tokens.range(start).start, tokens.range(end - 1).end);
        if end - start == 1 || last - first <= piece {
            // One text for several threads, if that is worth their waiting for each other.
            let parts = if end - start == 1 && tokens.texts() == 1 { threads.min((last - first) / LEAST) } else { 1 };
            return with_scratch(|scratch| self.run_piece(tokens, texts, parts.max(1), output, scratch));
        }
        // As many pieces on either side, as near as may be.
        let pieces = (last - first).div_ceil(piece);
        let goal = first + (last - first) * (pieces / 2) / pieces;
        let mut middle = start + 1;
        while middle < end - 1 && tokens.range(middle).end.abs_diff(goal) <= tokens.range(middle).start.abs_diff(goal) {
            middle += 1;
        }
        let (left, right) = output.split_at_mut((middle - start) * self.outputs());
        let mut left = || self.run(tokens, start..middle, piece, threads, left);
        let mut right = || self.run(tokens, middle..end, piece, threads, right);
        let (left, right) = if threads > 1 { rayon::join(left, right) } else { (left(), right()) };
        left.and(right)
    }

    fn run_piece(
        &self,
        tokens: &Tokens,
        texts: Range<usize>,
        parts: usize,
        output: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<()> {
        match parts {
            1 => self.transformer.run(tokens, texts.clone(), scratch)?,
            _ => self.transformer.run_split(tokens, texts.start, parts, scratch)?,
        }
        let width = self.transformer.config().width;
        let first = tokens.range(texts.start).start;
        for (text, output) in texts.zip(output.chunks_exact_mut(self.outputs())) {
            let range = tokens.range(text);
            let hidden = &scratch.hidden[(range.start - first) * width..(range.end - first) * width];
            self.head.run(hidden, width, output, &mut scratch.vectors)?;
        }
        Ok(())
    }
}

/// The fewest tokens that are worth a thread of their own.
const LEAST: usize = 16;

/// How many tokens to take through all layers at once, of so many on so many threads: so few that what lies between two
/// layers stays in the cache, so many that the weights' way from memory counts for little, and as much for each thread.
fn piece(tokens: usize, threads: usize) -> usize {
    const MOST: usize = 256;
    let pieces = tokens.div_ceil(MOST).next_multiple_of(threads);
    tokens.div_ceil(pieces.max(1)).max(LEAST)
}

/// Where a model's files are: of a folder of a Hugging Face cache, the snapshot that `main` names, or the only one; else
/// the folder itself.
///
/// # Errors
/// [`Error::File`]; [`Error::InvalidFile`] of several snapshots.
pub fn model_folder(folder: impl AsRef<Path>) -> Result<PathBuf> {
    let folder = folder.as_ref();
    let snapshots = folder.join("snapshots");
    if folder.join("config.json").exists() || !snapshots.is_dir() {
        return Ok(folder.to_path_buf());
    }
    if let Ok(name) = std::fs::read_to_string(folder.join("refs/main")) {
        return Ok(snapshots.join(name.trim()));
    }
    let file = |source| Error::File { path: snapshots.clone(), source };
    let mut entries = std::fs::read_dir(&snapshots).map_err(file)?;
    match (entries.next(), entries.next()) {
        (Some(only), None) => only.map(|entry| entry.path()).map_err(file),
        _ => Err(Error::InvalidFile { path: snapshots, message: "expected one snapshot, or refs/main".to_string() }),
    }
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Runs `work` with what this thread works in.
fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    // Taken out meanwhile: a thread that waits for another in the middle may take other work, which gets one of its
    // own.
    let mut scratch = SCRATCH.take().unwrap_or_else(|| Box::new(Scratch::new()));
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Gives back what the calling thread keeps from call to call, here and in `fbgemm`
/// ([`release_thread_buffer`](fbgemm::release_thread_buffer)): some MB for a piece of 256 tokens.
pub fn release_thread_buffers() {
    drop(SCRATCH.take());
    fbgemm::release_thread_buffer();
}
