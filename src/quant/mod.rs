//! Choosing and holding numbers: ranges, schemes, observers, quantized weights.

pub(crate) mod element;
pub(crate) mod input;
pub(crate) mod observer;
pub(crate) mod range;
pub(crate) mod saturation;
pub(crate) mod scheme;
pub(crate) mod weight;
pub(crate) mod weight_scheme;

/// `Serialize` and `Deserialize` through a type's `Display` and `FromStr`, which checks what its constructors check.
#[cfg(feature = "serde")]
macro_rules! stored_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
#[cfg(feature = "serde")]
pub(crate) use stored_as_text;
