//! Checks of a safetensors file's header that its parser does not make.

use std::collections::HashSet;

/// Checks what the safetensors parser lets pass: a name given twice, of which it keeps the last, and a tensor beyond
/// the file, where its sums may overflow.
pub(crate) fn check_header(bytes: &[u8]) -> std::result::Result<(), String> {
    let (length, rest) = bytes.split_first_chunk().ok_or("it has less than 8 bytes")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|e| e.to_string())?;
    let header =
        rest.get(..length).ok_or_else(|| format!("its header has {length} bytes, the file {}", bytes.len()))?;
    let Header { end } = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    match (rest.len() - length) as u64 {
        data if end <= data => Ok(()),
        data => Err(format!("its tensors take {end} bytes, of which the file has {data}")),
    }
}

/// A file's header, of which only that its names are unique and where its tensors end matters here.
pub(crate) struct Header {
    end: u64,
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

        #[derive(serde::Deserialize)]
        struct Tensor {
            data_offsets: (u64, u64),
        }

        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a header that is a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let (mut seen, mut end) = (HashSet::new(), 0);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        end = end.max(map.next_value::<Tensor>()?.data_offsets.1);
                    }
                    if let Some(twice) = seen.replace(name) {
                        return Err(A::Error::custom(format!("it has the name {twice:?} twice")));
                    }
                }
                Ok(Header { end })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
