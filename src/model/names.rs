//! Names of layers and of their parts, as PyTorch's checkpoints have them.

#[cfg(feature = "safetensors")]
use std::borrow::Cow;

/// `name.part`, or `part` at the top: for implementations of [`Modules`](crate::Modules).
pub fn join_name(name: &str, part: impl std::fmt::Display) -> String {
    if name.is_empty() { part.to_string() } else { format!("{name}.{part}") }
}

/// What a part of a layer is called in a file: `name.part`; of a recurrent layer's `lstm.weight_ih_l0`, where PyTorch has
/// the part in front, `lstm.part_ih_l0`.
///
/// ```
/// assert_eq!(fbgemm::part_name("encoder.dense", "bias"), "encoder.dense.bias");
/// assert_eq!(fbgemm::part_name("lstm.weight_hh_l1_reverse", "bias"), "lstm.bias_hh_l1_reverse");
/// ```
pub fn part_name(name: &str, part: &str) -> String {
    match recurrent(name, WEIGHT) {
        Some((module, suffix)) => join_name(module, format_args!("{part}{suffix}")),
        None => join_name(name, part),
    }
}

/// The part that a recurrent layer's linear layers are named after.
const WEIGHT: &str = "weight";

/// The module that a recurrent layer's linear layer is one of: `lstm` of `lstm.weight_ih_l0`.
pub(crate) fn recurrent_module(name: &str) -> Option<&str> {
    recurrent(name, WEIGHT).map(|(module, _)| module)
}

/// The name of the other linear layer of the same cell: `lstm.weight_hh_l0` of `lstm.weight_ih_l0`, or the other way round.
#[cfg(feature = "safetensors")]
pub(crate) fn recurrent_sibling(name: &str) -> Option<String> {
    let (module, suffix) = recurrent(name, WEIGHT)?;
    let other = match suffix.strip_prefix("_ih") {
        Some(rest) => format!("_hh{rest}"),
        None => format!("_ih{}", suffix.strip_prefix("_hh")?),
    };
    Some(join_name(module, format_args!("{WEIGHT}{other}")))
}

/// The module, and what comes behind `part`, of a name that is PyTorch's for that part of a recurrent layer:
/// `part_ih` or `part_hh`, of layers that are numbered with `_l` and the number, going backward with `_reverse`.
fn recurrent<'a>(name: &'a str, part: &str) -> Option<(&'a str, &'a str)> {
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    let suffix = last.strip_prefix(part)?;
    let rest = suffix.strip_prefix("_ih").or_else(|| suffix.strip_prefix("_hh"))?;
    let numbered = |rest: &str| {
        let number = rest.strip_prefix("_l").map(|number| number.strip_suffix("_reverse").unwrap_or(number));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    (rest.is_empty() || numbered(rest)).then_some((module, suffix))
}

/// The layer whose part of this name a tensor is.
#[cfg(feature = "safetensors")]
pub(crate) fn layer_of<'a>(full: &'a str, part: &str) -> Option<Cow<'a, str>> {
    if full == part {
        return Some("".into());
    }
    if let Some(layer) = full.strip_suffix(part).and_then(|layer| layer.strip_suffix('.')) {
        return Some(layer.into());
    }
    match recurrent(full, part)? {
        _ if part == WEIGHT => Some(full.into()),
        (module, suffix) => Some(join_name(module, format_args!("{WEIGHT}{suffix}")).into()),
    }
}

#[cfg(all(test, feature = "safetensors"))]
mod tests {
    use super::*;

    #[test]
    fn parts_of_recurrent_layers_are_told_from_others() {
        for layer in [
            "lstm.weight_ih_l0",
            "weight_hh_l12_reverse",
            "a.0.weight_hh",
            "dense",
            "a.weight_ihx",
            "",
            "a.weight_ih_l",
        ] {
            for part in ["weight", "scale", "zero_point", "col_offsets", "bias"] {
                let full = part_name(layer, part);
                assert_eq!(layer_of(&full, part).as_deref(), Some(layer), "{full}");
            }
        }
        assert_eq!(part_name("lstm.weight_ih_l0", "scale"), "lstm.scale_ih_l0");
        assert_eq!(part_name("a.weight_ih_lx", "scale"), "a.weight_ih_lx.scale");
        assert_eq!(layer_of("lstm.weight_hr_l0", "weight"), None);
        assert_eq!(recurrent_sibling("weight_ih").as_deref(), Some("weight_hh"));
        assert_eq!(recurrent_sibling("a.weight_hh_l0_reverse").as_deref(), Some("a.weight_ih_l0_reverse"));
        assert_eq!(recurrent_module("a.b.weight_hh_l0"), Some("a.b"));
    }
}
