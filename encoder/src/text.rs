//! Texts to tokens, by the model's own tokenizer.

use crate::config::read_json;
use crate::error::{Error, Result};
use crate::tokens::Tokens;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use std::path::Path;
use tokenizers::{EncodeInput, Encoding, Tokenizer, TruncationParams};

/// The tokenizer, told where to cut.
#[derive(Debug)]
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
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
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(refused)?;
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
        Ok(Self { tokenizer, lowercase: sentences["do_lower_case"] == serde_json::Value::Bool(true), longest })
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Each text's tokens, by the threads of the current pool.
    pub(crate) fn tokens<'t, T: Sync>(
        &self,
        texts: &'t [T],
        of: impl Fn(&'t T) -> EncodeInput<'t> + Sync,
    ) -> Result<Tokens> {
        let encode = |text: &'t T| self.tokenizer.encode_fast(of(text), true);
        let encodings: tokenizers::Result<Vec<Encoding>> = if texts.len() < 2 || rayon::current_num_threads() == 1 {
            texts.iter().map(encode).collect()
        } else {
            texts.par_iter().with_min_len(8).map(encode).collect()
        };
        let mut tokens = Tokens::new();
        for encoding in encodings.map_err(|e| Error::Tokenizer { message: e.to_string() })? {
            tokens.push(encoding.get_ids(), encoding.get_type_ids());
        }
        Ok(tokens)
    }

    /// A text as the tokenizer is to have it.
    pub(crate) fn prepare<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if self.lowercase { text.to_lowercase().into() } else { text.into() }
    }
}
