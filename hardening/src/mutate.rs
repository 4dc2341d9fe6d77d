//! Changes of real files that leave most of them as they were: of a header's entries, of JSON's values, of bytes.

use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value, json};

/// A number that programs don't expect.
fn number(u: &mut Unstructured) -> Result<Value> {
    let known = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(7),
        json!(255),
        json!(65_536),
        json!(i32::MAX),
        json!(u32::MAX),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(-0.0),
        json!(1e-320),
        json!(1e39),
        json!(1e308),
    ];
    Ok(if u.ratio(3, 4)? { u.choose(&known)?.clone() } else { json!(u.arbitrary::<u16>()?) })
}

/// A value of any kind.
fn value(u: &mut Unstructured, like: &Value) -> Result<Value> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Value::Null,
        1 => json!(u.arbitrary::<bool>()?),
        2 => json!([]),
        3 => json!({}),
        4 => json!([like]),
        5 => json!(u.arbitrary::<&str>()?),
        6 => json!(""),
        7 => match like {
            Value::String(text) => json!(format!("{text}{}", u.choose(&["x", " ", "\0", "/..", "é"])?)),
            Value::Number(number) => json!(number.as_i64().unwrap_or_default().wrapping_add(1)),
            Value::Array(items) => json!([&items[..], &items[..]].concat()),
            _ => number(u)?,
        },
        _ => number(u)?,
    })
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// Changes one of the values within, the `place`th in order.
fn change_at(value: &mut Value, place: &mut usize, u: &mut Unstructured) -> Result<bool> {
    if *place == 0 {
        *value = self::value(u, value)?;
        return Ok(true);
    }
    *place -= 1;
    match value {
        Value::Array(items) => {
            for i in 0..items.len() {
                if *place == 0 && u.ratio(1, 4)? {
                    items.remove(i);
                    return Ok(true);
                }
                if change_at(&mut items[i], place, u)? {
                    return Ok(true);
                }
            }
        }
        Value::Object(members) => {
            let names: Vec<String> = members.keys().cloned().collect();
            for name in names {
                if *place == 0 && u.ratio(1, 3)? {
                    let old = members.remove(&name);
                    if let (Some(old), true) = (old, u.arbitrary()?) {
                        let other = members.keys().nth(u.arbitrary::<u8>()?.into()).cloned();
                        members.insert(other.unwrap_or(format!("{name}x")), old);
                    }
                    return Ok(true);
                }
                if let Some(member) = members.get_mut(&name)
                    && change_at(member, place, u)?
                {
                    return Ok(true);
                }
            }
        }
        _ => {}
    }
    Ok(false)
}

/// JSON with one to four of its values changed, and now and then a byte of its text.
pub(crate) fn json_text(text: &str, u: &mut Unstructured) -> Result<Vec<u8>> {
    let mut root: Value = serde_json::from_str(text).unwrap_or_default();
    for _ in 0..u.int_in_range(1..=4)? {
        let mut place = u.choose_index(count(&root))?;
        change_at(&mut root, &mut place, u)?;
    }
    let mut bytes = root.to_string().into_bytes();
    if u.ratio(1, 8)? {
        self::bytes(&mut bytes, u)?;
    }
    Ok(bytes)
}

/// Bytes with a few of them changed, taken out, put in or moved.
pub(crate) fn bytes(bytes: &mut Vec<u8>, u: &mut Unstructured) -> Result<()> {
    for _ in 0..u.int_in_range(1..=4)? {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = u.choose_index(bytes.len())?;
        let to = (at + u.int_in_range(0..=40)?).min(bytes.len());
        match u.int_in_range(0..=4)? {
            0 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
            1 => bytes[at] = u.arbitrary()?,
            2 => drop(bytes.drain(at..to)),
            3 => drop(bytes.splice(at..at, u.bytes(to - at)?.to_vec())),
            _ => {
                let piece = bytes[at..to].to_vec();
                let place = u.choose_index(bytes.len())?;
                bytes.splice(place..place, piece);
            }
        }
    }
    Ok(())
}

/// A safetensors file with its header's entries changed: names, types, shapes, offsets, metadata; and perhaps its bytes.
pub(crate) fn safetensors(file: &[u8], u: &mut Unstructured) -> Result<Vec<u8>> {
    // One that has been changed before may have no header any more.
    let parts =
        file.split_first_chunk().and_then(|(length, rest)| rest.split_at_checked(u64::from_le_bytes(*length) as usize));
    let Some((header, data)) = parts else { return Ok(file.to_vec()) };
    let mut data = data.to_vec();
    let Ok(Value::Object(mut header)) = serde_json::from_slice(header) else { return Ok(file.to_vec()) };
    for _ in 0..u.int_in_range(0..=4)? {
        entry(&mut header, data.len(), u)?;
    }
    if u.ratio(1, 4)? {
        bytes(&mut data, u)?;
    }
    let mut text = serde_json::to_vec(&header).unwrap_or_default();
    if u.ratio(1, 8)? {
        // One name twice, which no map has.
        if let Some(end) = text.iter().rposition(|&b| b == b'}') {
            let twice = header.iter().nth(u.choose_index(header.len().max(1))?);
            let twice = twice.map(|(name, value)| format!(",{}:{value}}}", json!(name))).unwrap_or_default();
            text.splice(end.., twice.into_bytes());
        }
    }
    if u.ratio(1, 8)? {
        bytes(&mut text, u)?;
    }
    let length = if u.ratio(1, 16)? { u.arbitrary()? } else { text.len() as u64 };
    Ok([&length.to_le_bytes()[..], &text, &data].concat())
}

fn entry(header: &mut Map<String, Value>, data: usize, u: &mut Unstructured) -> Result<()> {
    const TYPES: [&str; 12] = ["F32", "F16", "BF16", "F64", "I8", "U8", "I32", "I64", "BOOL", "F8_E4M3", "C64", "x"];
    if header.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = header.keys().cloned().collect();
    let (one, other) = (u.choose(&names)?.clone(), u.choose(&names)?.clone());
    if one == "__metadata__" {
        let Some(Value::Object(metadata)) = header.get_mut(&one) else { return Ok(()) };
        let keys: Vec<String> = metadata.keys().cloned().collect();
        let key = if keys.is_empty() { "fbgemm_format".to_string() } else { u.choose(&keys)?.clone() };
        let values: Vec<Value> = metadata.values().cloned().collect();
        match u.int_in_range(0..=4)? {
            0 => drop(metadata.remove(&key)),
            1 => drop(metadata.insert(key, json!(u.arbitrary::<&str>()?))),
            2 => drop(metadata.insert(key, json!(u.arbitrary::<u8>()?.to_string()))),
            3 if !values.is_empty() => drop(metadata.insert(key, u.choose(&values)?.clone())),
            _ => {
                let words = ["input:", "fp16:", "embedding:", "fbgemm_", "shard", ""];
                let layer = one.rsplit_once('.').map_or(other.as_str(), |(layer, _)| layer);
                metadata.insert(format!("{}{layer}", u.choose(&words)?), json!(u.arbitrary::<&str>()?));
            }
        }
        return Ok(());
    }
    let change = u.int_in_range(0..=8)?;
    // An earlier change may have made something else of it.
    let Some(tensor) = header.get_mut(&one).filter(|tensor| tensor.is_object()) else { return Ok(()) };
    match change {
        0 => drop(header.remove(&one)),
        1 => {
            let tensor = tensor.clone();
            let parts = ["weight", "scale", "zero_point", "col_offsets", "bias", "weight_ih_l0", "scale_hh_l0", ""];
            let name = one.rsplit_once('.').map_or("", |(layer, _)| layer);
            header.insert(format!("{name}.{}", u.choose(&parts)?), tensor);
        }
        2 => {
            let (a, b) = (header[&one].clone(), header[&other].clone());
            header.insert(one, b);
            header.insert(other, a);
        }
        3 => tensor["dtype"] = json!(u.choose(&TYPES)?),
        4 => tensor["shape"] = json!([number(u)?, number(u)?]),
        5 => {
            if let Some(Value::Array(shape)) = tensor.get_mut("shape") {
                match u.int_in_range(0..=3)? {
                    0 => shape.reverse(),
                    1 => shape.push(json!(1)),
                    2 => drop(shape.pop()),
                    _ => {
                        if let Some(first) = shape.first_mut() {
                            *first = number(u)?;
                        }
                    }
                }
            }
        }
        6 => tensor["data_offsets"] = json!([u.int_in_range(0..=data)?, u.int_in_range(0..=data)?]),
        7 => tensor["data_offsets"] = json!([number(u)?, number(u)?]),
        _ => {
            let place = u.choose_index(count(tensor))?;
            change_at(tensor, &mut place.clone(), u)?;
        }
    }
    Ok(())
}
