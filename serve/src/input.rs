//! What can stand for texts in a request: a text, its tokens, or a list of them; for a classifier, texts and pairs.

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use std::fmt::{Formatter, Result as FmtResult};

/// A text, or the tokens that the model reads for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Text(String),
    Ids(Vec<u32>),
}

impl Input {
    pub(crate) fn characters(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Ids(ids) => ids.len(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Ids(ids) => 4 * ids.len(),
        }
    }
}

/// One or many.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inputs(pub Vec<Input>);

/// An element of a list.
enum Element {
    Id(u32),
    Input(Input),
}

const EXPECTED: &str = "a string, a list of strings, a list of token ids, or a list of such lists";

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Inputs;

            fn expecting(&self, f: &mut Formatter) -> FmtResult {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs(vec![Input::Text(text.to_string())]))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Inputs, E> {
                Ok(Inputs(vec![Input::Text(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
                let (mut ids, mut inputs) = (Vec::new(), Vec::new());
                while let Some(element) = list.next_element()? {
                    match element {
                        Element::Id(id) => ids.push(id),
                        Element::Input(input) => inputs.push(input),
                    }
                    if !ids.is_empty() && !inputs.is_empty() {
                        return Err(A::Error::custom(format_args!("token ids beside texts, expected {EXPECTED}")));
                    }
                }
                if !ids.is_empty() {
                    inputs.push(Input::Ids(ids));
                }
                Ok(Inputs(inputs))
            }
        }
        deserializer.deserialize_any(Of)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Element;

            fn expecting(&self, f: &mut Formatter) -> FmtResult {
                f.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                u32::try_from(id).map(Element::Id).map_err(|_| E::custom(format_args!("{id} is no token id")))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Input(Input::Text(text.to_string())))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
                Ok(Element::Input(Input::Text(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Input(Input::Ids(ids)))
            }
        }
        deserializer.deserialize_any(Of)
    }
}

/// What a classifier reads: a text, or a pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Passage {
    One(String),
    Pair(String, String),
}

impl Passage {
    pub(crate) fn characters(&self) -> usize {
        match self {
            Self::One(text) => text.chars().count(),
            Self::Pair(first, second) => first.chars().count() + second.chars().count(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::One(text) => text.len(),
            Self::Pair(first, second) => first.len() + second.len(),
        }
    }

    fn of(mut texts: Vec<String>) -> Option<Self> {
        match (texts.pop(), texts.pop(), texts.is_empty()) {
            (Some(text), None, true) => Some(Self::One(text)),
            (Some(second), Some(first), true) => Some(Self::Pair(first, second)),
            _ => None,
        }
    }
}

/// One, or many.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passages {
    One(Passage),
    Many(Vec<Passage>),
}

const PASSAGES: &str = "a string, a pair of strings, or a list of lists of one or two strings";

impl<'de> Deserialize<'de> for Passages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a string, or a list of one or two strings")]
        enum Part {
            Text(String),
            Texts(Vec<String>),
        }
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Passages;

            fn expecting(&self, f: &mut Formatter) -> FmtResult {
                f.write_str(PASSAGES)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Passages, E> {
                Ok(Passages::One(Passage::One(text.to_string())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Passages, A::Error> {
                let wrong = || A::Error::custom(format_args!("expected {PASSAGES}"));
                let (mut texts, mut passages) = (Vec::new(), Vec::new());
                while let Some(part) = list.next_element()? {
                    match part {
                        Part::Text(text) => texts.push(text),
                        Part::Texts(texts) => passages.push(Passage::of(texts).ok_or_else(wrong)?),
                    }
                }
                match (texts.is_empty(), passages.is_empty()) {
                    (true, _) => Ok(Passages::Many(passages)),
                    (false, true) => Passage::of(texts).map(Passages::One).ok_or_else(wrong),
                    (false, false) => Err(wrong()),
                }
            }
        }
        deserializer.deserialize_any(Of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_no_other() {
        let read = |json: &str| serde_json::from_str::<Inputs>(json).map(|inputs| inputs.0).map_err(|e| e.to_string());
        let text = |text: &str| Input::Text(text.to_string());
        assert_eq!(read(r#""a""#), Ok(vec![text("a")]));
        assert_eq!(read(r#""\u00e9""#), Ok(vec![text("é")]));
        assert_eq!(read(r#"["a", "", "\n"]"#), Ok(vec![text("a"), text(""), text("\n")]));
        assert_eq!(read("[1, 2]"), Ok(vec![Input::Ids(vec![1, 2])]));
        assert_eq!(read("[[1, 2], [3], []]"), Ok([&[1, 2][..], &[3], &[]].map(|ids| Input::Ids(ids.to_vec())).into()));
        assert_eq!(read(r#"["a", [1]]"#), Ok(vec![text("a"), Input::Ids(vec![1])]));
        assert_eq!(read("[]"), Ok(vec![]));
        for (json, said) in [
            ("1", "expected a string, a list"),
            ("null", "expected a string, a list"),
            (r#"{"a": 1}"#, "expected a string, a list"),
            (r#"[1, "a"]"#, "token ids beside texts"),
            ("[1.5]", "expected a string, a token id"),
            ("[-1]", "expected a string, a token id"),
            ("[4294967296]", "4294967296 is no token id"),
            ("[[\"a\"]]", "expected u32"),
            ("[null]", "expected a string, a token id"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn texts_and_pairs_are_told_apart() {
        let read = |json: &str| serde_json::from_str::<Passages>(json).map_err(|e| e.to_string());
        let one = |text: &str| Passage::One(text.to_string());
        let pair = |first: &str, second: &str| Passage::Pair(first.to_string(), second.to_string());
        assert_eq!(read(r#""a\n""#), Ok(Passages::One(one("a\n"))));
        assert_eq!(read(r#"["a"]"#), Ok(Passages::One(one("a"))));
        assert_eq!(read(r#"["a", "b"]"#), Ok(Passages::One(pair("a", "b"))));
        assert_eq!(read(r#"[["a"], ["b", "c"]]"#), Ok(Passages::Many(vec![one("a"), pair("b", "c")])));
        assert_eq!(read("[]"), Ok(Passages::Many(vec![])));
        for json in ["1", "null", r#"["a", "b", "c"]"#, "[[]]", r#"[["a", "b", "c"]]"#, r#"["a", ["b"]]"#] {
            let error = read(json).unwrap_err();
            assert!(error.contains("a string, a pair of strings, or a list of lists"), "{json}: {error}");
        }
        let error = read("[1]").unwrap_err();
        assert!(error.contains("a string, or a list of one or two strings"), "{error}");
    }
}
