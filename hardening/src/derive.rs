//! The derive macro's own code: any definition gives an implementation that is Rust, or a compiler's message.

#[path = "../../derive/src/expand.rs"]
mod expand;

use arbitrary::{Result, Unstructured};
use proc_macro2::TokenStream;
use std::str::FromStr;

/// Types of fields, some of which name the type itself or its parameters.
const TYPES: [&str; 14] = [
    "Linear",
    "Vec<Linear>",
    "Option<Box<A>>",
    "Box<Self>",
    "T",
    "Vec<(T, U)>",
    "[Linear; N]",
    "&'a T",
    "<T as Iterator>::Item",
    "fn(T) -> U",
    "dyn Modules",
    "Linear!(T)",
    "()",
    "!",
];

/// What stands before a field, a variant or the type.
const ATTRIBUTES: [&str; 18] = [
    "#[module(skip)]",
    "#[module(flatten)]",
    "#[module(rename = \"a\")]",
    "#[module(rename = \"0\")]",
    "#[module(rename = \"a.b\")]",
    "#[module(rename = \"\")]",
    "#[module(rename = \".a\")]",
    "#[module(rename = b\"a\")]",
    "#[module(rename)]",
    "#[module(rename = 1 + 1)]",
    "#[module(skip, flatten)]",
    "#[module(skip, skip)]",
    "#[module(skip(a))]",
    "#[module(other)]",
    "#[module()]",
    "#[module]",
    "#[module = \"a\"]",
    "#[cfg(test)]",
];

const NAMES: [&str; 7] = ["a", "b", "r#type", "self", "field_0", "name", "A"];

const GENERICS: [&str; 7] =
    ["", "<T>", "<T, U>", "<'a, T: 'a + Copy, U = u8>", "<T, U, const N: usize>", "<T: ?Sized>", "<>"];

const WHERE: [&str; 4] = ["", "where T: Modules", "where", "where Self: Sized,"];

/// A definition from a fuzzer's bytes.
pub fn derive(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(text) = definition(&mut u) else { return };
    // What the compiler's own lexer refuses never comes to a macro.
    let Ok(tokens) = TokenStream::from_str(&text) else { return };
    match expand::expand(tokens) {
        Ok(implementation) => {
            let said = implementation.to_string();
            syn::parse2::<syn::ItemImpl>(implementation).unwrap_or_else(|e| panic!("{text}\ngives {said}: {e}"));
        }
        Err(e) => {
            let message = e.into_compile_error();
            syn::parse2::<syn::File>(message).unwrap_or_else(|e| panic!("{text} gives no message: {e}"));
        }
    }
}

fn definition(u: &mut Unstructured) -> Result<String> {
    let mut text = attributes(u)?;
    let (generics, clause) = (*u.choose(&GENERICS)?, *u.choose(&WHERE)?);
    match u.int_in_range(0..=9)? {
        0 => text += &format!("union A{generics} {clause} {}", fields(u)?),
        1..=4 => {
            text += &format!("enum A{generics} {clause} {{");
            for i in 0..u.int_in_range(0..=3)? {
                text += &format!("{} V{i} {},", attributes(u)?, fields(u)?);
            }
            text.push('}');
        }
        _ => match fields(u)? {
            named if named.starts_with('{') => text += &format!("struct A{generics} {clause} {named}"),
            unnamed => text += &format!("struct A{generics} {unnamed} {clause};"),
        },
    }
    // Words in the wrong place, too.
    if u.ratio(1, 8)? {
        let at = u.choose_index(text.len())?;
        let word = *u.choose(&[&TYPES[..], &ATTRIBUTES[..], &NAMES[..], &["{", ")", ",", ":", "'", "\""]].concat())?;
        text.insert_str(at, word);
    }
    Ok(text)
}

fn attributes(u: &mut Unstructured) -> Result<String> {
    let mut text = String::new();
    // Mostly none. Of no more bytes, none.
    for _ in 5..u.int_in_range(0..=7)?.max(5) {
        text += u.choose(&ATTRIBUTES)?;
    }
    Ok(text)
}

/// Fields in braces, in parentheses, or none.
fn fields(u: &mut Unstructured) -> Result<String> {
    let (open, close) = *u.choose(&[("{", "}"), ("(", ")"), ("", "")])?;
    let mut text = String::from(open);
    for _ in 0..if open.is_empty() { 0 } else { u.int_in_range(0..=4)? } {
        text += &attributes(u)?;
        if open == "{" {
            text += &format!("{}: ", u.choose(&NAMES)?);
        }
        text += &format!("{},", u.choose(&TYPES)?);
    }
    Ok(text + close)
}
