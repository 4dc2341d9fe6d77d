//! The library's own modules: each floor imports only from floors below it, and no file goes round in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From the ground up. The files at the foot have a place each, as `cpu` asks `ffi::library`, and is asked by the rest of
/// `ffi`.
const FLOORS: [&str; 11] =
    ["isa", "error", "ffi::types", "ffi::library", "cpu", "provider", "ffi", "quant", "ops", "nn", "model"];

/// The floor of a module: the longest name in the list that it is or lies in.
fn floor(module: &str) -> usize {
    let within = |floor: &str| module == floor || module.strip_prefix(floor).is_some_and(|rest| rest.starts_with("::"));
    let found = FLOORS.iter().enumerate().filter(|(_, floor)| within(floor)).max_by_key(|(_, floor)| floor.len());
    found.unwrap_or_else(|| panic!("{module} is on no floor")).0
}

/// Every module of `src`, by its path, and its code: what comes before the tests, without comments.
fn modules(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let name = if prefix.is_empty() { stem.to_string() } else { format!("{prefix}::{stem}") };
        if path.is_dir() {
            modules(&path, &name, found);
        } else if path.extension().is_some_and(|e| e == "rs") && name != "lib" {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().split("#[cfg(all(test").next().unwrap();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let name = if stem == "mod" { prefix.to_string() } else { name };
            found.insert(name, lines.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The paths that a piece of code names behind `start` (`crate::`, `super::`), groups in braces taken apart.
fn paths(code: &str, start: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        let before = code[..at].chars().next_back();
        // A part of another word, or a link in a text.
        if before.is_some_and(|c| c.is_alphanumeric() || "_:(".contains(c)) && !code[..at].ends_with("pub(") {
            continue;
        }
        expand(&code[at + start.len()..], "", &mut found);
    }
    found
}

/// Reads one path, or each of a group's, and returns how many bytes it took.
fn expand(text: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut path = prefix.to_string();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            while !text[at..].starts_with('}') {
                let skipped = text[at..].len() - text[at..].trim_start_matches([' ', '\n', ',']).len();
                at += skipped;
                if !text[at..].starts_with('}') {
                    at += expand(&text[at..], &path, found).max(1);
                }
            }
            return at + 1;
        }
        let part: String = rest.chars().take_while(|&c| word(c)).collect();
        at += part.len();
        path = if path.is_empty() { part } else { format!("{path}::{part}") };
        if !text[at..].starts_with("::") {
            found.push(path);
            return at;
        }
        at += 2;
    }
}

/// Which modules each module's code names.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let mut code = BTreeMap::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut code);
    let known: BTreeSet<String> = code.keys().cloned().collect();
    // The longest module that a path leads to or through.
    let module = |path: &str| {
        let parts: Vec<&str> = path.split("::").collect();
        (1..=parts.len()).rev().map(|n| parts[..n].join("::")).find(|name| known.contains(name))
    };
    code.iter()
        .map(|(name, code)| {
            let parent = name.rsplit_once("::").map_or("", |(parent, _)| parent);
            let mut of_module = BTreeSet::new();
            for path in paths(code, "crate::") {
                let found = module(&path);
                // What lib.rs re-exports hides where it is: a module's own path tells.
                assert!(found.is_some(), "{name} names crate::{path}, expected the path of its module");
                of_module.extend(found);
            }
            // At the start of a line: modules inside a file speak of the file itself as `super`.
            let outer = code.replace("\nuse super::", "\nuse parent::");
            for path in paths(&outer, "parent::") {
                of_module.extend(module(&format!("{parent}::{path}")));
            }
            of_module.remove(name);
            (name.clone(), of_module)
        })
        .collect()
}

#[test]
fn no_module_imports_from_a_floor_above() {
    let imports = imports();
    assert!(imports.len() > 30 && imports.values().map(BTreeSet::len).sum::<usize>() > 100, "{imports:?}");
    for (name, of) in &imports {
        for other in of {
            assert!(floor(other) <= floor(name), "{name} imports {other} from a floor above");
        }
    }
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut left = imports();
    // A folder's own file declares the others, and holds what all of them share: they may name it.
    while let Some(free) = left.iter().find(|(_, of)| of.is_empty()).map(|(name, _)| name.clone()) {
        left.remove(&free);
        for of in left.values_mut() {
            of.remove(&free);
        }
    }
    assert!(left.is_empty(), "these import each other: {left:#?}");
}

#[test]
fn an_import_upwards_is_seen() {
    assert_eq!(
        paths("use crate::ops::{packed::{A, B}, lengths};", "crate::"),
        ["ops::packed::A", "ops::packed::B", "ops::lengths"]
    );
    assert_eq!(paths("crate::nn::linear::Linear; xcrate::no", "crate::"), ["nn::linear::Linear"]);
    assert!(floor("nn::linear") > floor("ops::packed") && floor("ffi::int8") > floor("cpu"));
}
