//! Prompts: what a model wants to stand before each text, as sentence-transformers' configuration has them.

use crate::config::read_json;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug)]
pub(crate) struct Prompts {
    by_name: BTreeMap<String, String>,
    /// The text before every text; empty: none.
    chosen: String,
    /// Whether a prompt's tokens count in the pooling.
    pooled: bool,
}

impl Prompts {
    /// Of a folder that may have none. `name` is the one to take, the empty one for none; else the file's default.
    pub(crate) fn read(folder: &Path, name: Option<&str>, pooled: bool) -> Result<Self> {
        let path = folder.join("config_sentence_transformers.json");
        let json = if path.exists() { read_json(&path)? } else { Default::default() };
        let texts = json["prompts"].as_object().into_iter().flatten();
        let by_name: BTreeMap<String, String> =
            texts.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_string()))).collect();
        let chosen = match name.or_else(|| json["default_prompt_name"].as_str()) {
            None | Some("") => String::new(),
            Some(name) => match by_name.get(name) {
                Some(text) => text.clone(),
                None => {
                    let names: Vec<&str> = by_name.keys().map(String::as_str).collect();
                    let there = if names.is_empty() { "none".to_string() } else { names.join(", ") };
                    let message = format!("a prompt `{name}` was asked for; the file has {there}");
                    return Err(Error::InvalidFile { path, message });
                }
            },
        };
        let prompts = Self { by_name, chosen, pooled };
        prompts.check(&prompts.chosen)?;
        Ok(prompts)
    }

    pub(crate) fn chosen(&self) -> &str {
        &self.chosen
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// An error for a prompt that the pooling would have to leave out.
    pub(crate) fn check(&self, prompt: &str) -> Result<()> {
        if prompt.is_empty() || self.pooled {
            return Ok(());
        }
        let given = "include_prompt: false".to_string();
        Err(Error::Unsupported { what: "pooling with a prompt", given, expected: "include_prompt: true" })
    }
}
