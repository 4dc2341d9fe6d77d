//! Texts to tokens, by the model's own tokenizer.

use crate::config::read_json;
use crate::error::{Error, Result};
use crate::tokens::Tokens;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::{EncodeInput, Encoding, Tokenizer, TruncationDirection, TruncationParams};

/// What becomes of a text, or a pair of texts, that has more tokens than a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Truncation {
    /// Its beginning is kept. Of a pair, tokens are taken from the longer text first.
    #[default]
    Right,
    /// Its end is kept.
    Left,
    /// It is an error, [`Error::WrongTokens`].
    Refuse,
}

/// The tokenizer, told where to cut.
#[derive(Debug)]
pub(crate) struct TextTokenizer {
    /// Keeps the beginning.
    tokenizer: Tokenizer,
    /// Keeps the end. Made when it is first needed: few need it, and a vocabulary can take 100 MB.
    from_left: OnceLock<Tokenizer>,
    /// Does not cut. Made when a text may be too long to be taken, to say how long it is.
    uncut: OnceLock<Tokenizer>,
    lowercase: bool,
    longest: usize,
}

impl TextTokenizer {
    /// From a folder's `tokenizer.json`. It cuts at `longest`, or at the model's `most` tokens, or before, where
    /// sentence-transformers' configuration, the tokenizer's, or the file itself says so, the first of them that does.
    pub(crate) fn read(folder: &Path, transformer: &Path, longest: Option<usize>, most: usize) -> Result<Self> {
        let path = transformer.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| Error::File { path: path.clone(), source })?;
        let refused = |e: tokenizers::Error| Error::InvalidFile { path: path.clone(), message: e.to_string() };
        // `tokenizers` panics at some of what it can't read: a decoder or normalizer of a kind that it does not know.
        let parsed = std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes));
        let unread = |_| Err("the crate `tokenizers` can't read it".into());
        let mut tokenizer = parsed.unwrap_or_else(unread).map_err(refused)?;
        let of_sentences = [
            "sentence_bert_config.json",
            "sentence_roberta_config.json",
            "sentence_distilbert_config.json",
            "sentence_mpnet_config.json",
            "sentence_xlm-roberta_config.json",
            "sentence_camembert_config.json",
        ];
        let sentences = of_sentences.iter().flat_map(|name| [transformer.join(name), folder.join(name)]);
        let sentences = sentences.filter(|path| path.exists()).map(|path| read_json(&path)).next().transpose()?;
        let sentences = sentences.unwrap_or_default();
        let of_tokenizer = transformer.join("tokenizer_config.json");
        let of_tokenizer = if of_tokenizer.exists() { read_json(&of_tokenizer)? } else { Default::default() };
        // Where there is no limit, transformers writes 10³⁰.
        let number = |value: &serde_json::Value| value.as_u64().map(|n| n as usize);
        let limit = longest
            .or_else(|| number(&sentences["max_seq_length"]))
            .or_else(|| number(&of_tokenizer["model_max_length"]))
            .or_else(|| tokenizer.get_truncation().map(|truncation| truncation.max_length));
        // Files have padding and cuts of their own. A pair has the tokens that every pair has, and one of its own.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(refused)?;
        let fewest = tokenizer.encode_fast(("", ""), true).map_err(refused)?.len() + 1;
        let longest = limit.unwrap_or(most).min(most);
        if longest < fewest {
            return Err(Error::WrongTokens { given: longest, least: fewest, limit: most });
        }
        let truncation = TruncationParams { max_length: longest, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(refused)?;
        let lowercase = sentences["do_lower_case"] == serde_json::Value::Bool(true);
        Ok(Self { tokenizer, from_left: OnceLock::new(), uncut: OnceLock::new(), lowercase, longest })
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Each text's tokens, by the threads of the current pool.
    pub(crate) fn tokens<'t, T: Sync>(
        &self,
        texts: &'t [T],
        truncation: Truncation,
        of: impl Fn(&'t T) -> EncodeInput<'t> + Sync,
    ) -> Result<Tokens> {
        let encode = |text: &'t T| self.encode(of(text), truncation);
        let encodings: Result<Vec<Encoding>> = if texts.len() < 2 || rayon::current_num_threads() == 1 {
            texts.iter().map(encode).collect()
        } else {
            texts.par_iter().with_min_len(8).map(encode).collect()
        };
        let mut tokens = Tokens::new();
        for encoding in encodings? {
            tokens.push(encoding.get_ids(), encoding.get_type_ids());
        }
        Ok(tokens)
    }

    fn encode(&self, text: EncodeInput, truncation: Truncation) -> Result<Encoding> {
        let refused = |e: tokenizers::Error| Error::Tokenizer { message: e.to_string() };
        match truncation {
            Truncation::Right => self.tokenizer.encode_fast(text, true).map_err(refused),
            Truncation::Left => {
                let make = || {
                    let mut tokenizer = self.tokenizer.clone();
                    let direction = TruncationDirection::Left;
                    let truncation = TruncationParams { max_length: self.longest, direction, ..Default::default() };
                    tokenizer.with_truncation(Some(truncation)).expect("a stride of 0 fits every length");
                    tokenizer
                };
                self.from_left.get_or_init(make).encode_fast(text, true).map_err(refused)
            }
            Truncation::Refuse => {
                let encoding = self.tokenizer.encode_fast(text.clone(), true).map_err(refused)?;
                if encoding.len() < self.longest {
                    return Ok(encoding);
                }
                // Cut, or just as long. What was cut off is not to be had: the tokenizer stops reading soon after.
                let make = || {
                    let mut tokenizer = self.tokenizer.clone();
                    tokenizer.with_truncation(None).expect("nothing to refuse");
                    tokenizer
                };
                let given = self.uncut.get_or_init(make).encode_fast(text, true).map_err(refused)?.len();
                if given <= self.longest {
                    return Ok(encoding);
                }
                Err(Error::WrongTokens { given, least: 1, limit: self.longest })
            }
        }
    }

    /// A text as the tokenizer is to have it.
    pub(crate) fn prepare<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if self.lowercase { text.to_lowercase().into() } else { text.into() }
    }
}
