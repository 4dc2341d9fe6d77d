//! A safetensors file's header: its tensors' types, shapes and places, all of them checked.

use super::source::{Source, known_kind};
use crate::error::{Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashSet;
use std::path::Path;

/// The most bytes that a header may have, as the format has it.
const MOST: u64 = 100_000_000;

/// What a file's header says, and where the tensors' bytes begin.
pub(crate) struct Header {
    pub(crate) about: Metadata,
    pub(crate) start: u64,
}

impl Header {
    /// Reads and checks the header. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::WrongFormat`] for a file of another known kind, [`Error::InvalidFile`], and those of reading.
    pub(crate) fn read(source: &Source, path: Option<&Path>) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidFile { reason };
        let first = source.read(0..source.len().min(512))?;
        let kind = || match known_kind(&first, path) {
            Some((what, next)) => Error::WrongFormat { what, next },
            None => invalid("it has less than 8 bytes".to_string()),
        };
        let (length, rest) = first.split_first_chunk().ok_or_else(kind)?;
        let length = u64::from_le_bytes(*length);
        let end = length.checked_add(8).filter(|&end| end <= source.len() && length <= MOST);
        let end = match (end, known_kind(&first, path)) {
            (Some(end), _) if rest.first() == Some(&b'{') => end,
            (_, Some((what, next))) => return Err(Error::WrongFormat { what, next }),
            (Some(_), None) => return Err(invalid("its header is no JSON object".to_string())),
            (None, None) => {
                let has = source.len();
                return Err(invalid(format!("its header has {length} bytes, the file {has}")));
            }
        };
        let text = source.read(8..end)?;
        let Names = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
        let about: Metadata = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
        match (about.data_len() as u64, source.len() - end) {
            (data, has) if data == has => Ok(Self { about, start: end }),
            (data, has) => Err(invalid(format!("its tensors take {data} bytes, of which the file has {has}"))),
        }
    }

    /// The tensors by name, in no order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, TensorInfo)> {
        self.about.tensors().into_iter().map(|(name, info)| (name, info.clone()))
    }
}

/// A header whose names are there once each: the parser keeps the last of two.
struct Names;

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a header that is a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    map.next_value::<IgnoredAny>()?;
                    if let Some(twice) = seen.replace(name) {
                        return Err(A::Error::custom(format!("it has the name {twice:?} twice")));
                    }
                }
                Ok(Names)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
