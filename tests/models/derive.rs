//! The derive: which layers it finds under which names, and what it says when it can't.

use fbgemm::{Int8Scheme, Linear, Modules, QuantizeOptions, quantize_modules};
use fbgemm_testkit::process::alone;
use std::collections::{BTreeMap, HashMap};

fn layer() -> Linear {
    Linear::new(vec![0.5; 16 * 16], None, 16, 16).unwrap()
}

/// The names in the order of the walk, which must be those of the walk that changes; then all are quantized by one
/// call.
fn names(model: &mut impl Modules) -> Vec<String> {
    let mut names = Vec::new();
    let mut layers: Vec<&Linear> = Vec::new();
    model.visit_linear("", &mut |name, layer| {
        names.push(name.to_string());
        layers.push(layer);
    });
    let mut again = Vec::new();
    model.visit_linear_mut("", &mut |name, _| again.push(name.to_string()));
    assert_eq!(names, again);
    if !names.is_empty() {
        let report = quantize_modules(model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap();
        assert!(report.quantized().map(|layer| &layer.name).eq(&names));
        model.visit_linear("", &mut |name, layer| assert!(layer.is_quantized(), "{name}"));
    }
    names
}

/// No linear layers, and it does not say so.
struct Norm;

#[derive(Modules)]
struct Nested {
    inner: Inner,
    list: Vec<Linear>,
    array: [Inner; 2],
    present: Option<Linear>,
    absent: Option<Linear>,
    boxed: Box<Inner>,
    pair: (Linear, Linear),
    by_name: BTreeMap<String, Linear>,
    by_hash: HashMap<&'static str, Linear>,
    width: usize,
    label: String,
    #[module(skip)]
    #[allow(dead_code)]
    norm: Norm,
}

#[derive(Modules)]
struct Inner {
    a: Linear,
}

#[test]
fn layers_are_found_wherever_they_sit() {
    let inner = || Inner { a: layer() };
    let mut model = Nested {
        inner: inner(),
        list: vec![layer(), layer()],
        array: [inner(), inner()],
        present: Some(layer()),
        absent: None,
        boxed: Box::new(inner()),
        pair: (layer(), layer()),
        by_name: BTreeMap::from([("y".to_string(), layer()), ("x".to_string(), layer())]),
        by_hash: HashMap::from([("q", layer()), ("p", layer()), ("r", layer())]),
        width: 1,
        label: String::new(),
        norm: Norm,
    };
    let expected = "inner.a list.0 list.1 array.0.a array.1.a present boxed.a pair.0 pair.1 by_name.x by_name.y \
        by_hash.p by_hash.q by_hash.r";
    assert_eq!(names(&mut model).join(" "), expected);
}

#[derive(Modules)]
struct Named {
    r#type: Linear,
    #[module(rename = "self")]
    self_attention: Inner,
    #[module(rename = "a.b")]
    dotted: Linear,
    #[module(flatten)]
    flat: Inner,
}

#[test]
fn names_can_be_raw_changed_and_left_out() {
    let inner = || Inner { a: layer() };
    let mut model = Named { r#type: layer(), self_attention: inner(), dotted: layer(), flat: inner() };
    assert_eq!(names(&mut model), ["type", "self.a", "a.b", "a"]);
}

#[derive(Modules)]
struct Newtype(Inner);

#[derive(Modules)]
struct Pair(Linear, #[module(skip)] Norm, Inner);

#[derive(Modules)]
struct Nothing;

#[test]
fn tuple_structs_are_numbered_and_newtypes_add_no_name() {
    assert_eq!(names(&mut Newtype(Inner { a: layer() })), ["a"]);
    assert_eq!(names(&mut Pair(layer(), Norm, Inner { a: layer() })), ["0", "2.a"]);
    assert!(names(&mut Nothing).is_empty());
}

#[derive(Modules)]
enum Head {
    Plain(Linear),
    Gated { gate: Linear, value: Linear },
    Two(Inner, Linear),
    Absent,
}

#[derive(Modules)]
enum Impossible {}

#[test]
fn an_enums_variant_adds_no_name() {
    let mut heads = vec![
        Head::Plain(layer()),
        Head::Gated { gate: layer(), value: layer() },
        Head::Two(Inner { a: layer() }, layer()),
        Head::Absent,
    ];
    assert_eq!(names(&mut heads), ["0", "1.gate", "1.value", "2.0.a", "2.1"]);
    assert!(names(&mut Vec::<Impossible>::new()).is_empty());
}

#[derive(Modules)]
struct Generic<'a, T, U, const N: usize>
where
    T: Clone,
{
    layers: [T; N],
    borrowed: &'a mut U,
    #[module(skip)]
    #[allow(dead_code)]
    other: Option<fn(T) -> U>,
}

#[derive(Modules)]
struct Tree<T> {
    value: T,
    children: Vec<Tree<T>>,
    next: Option<Box<Self>>,
}

#[test]
fn generic_and_recursive_types_are_walked() {
    let mut inner = Inner { a: layer() };
    let mut model = Generic { layers: [layer(), layer()], borrowed: &mut inner, other: None };
    assert_eq!(names(&mut model), ["layers.0", "layers.1", "borrowed.a"]);
    let leaf = || Tree { value: layer(), children: vec![], next: None };
    let mut tree = Tree { value: layer(), children: vec![leaf()], next: Some(Box::new(leaf())) };
    assert_eq!(names(&mut tree), ["value", "children.0.value", "next.value"]);
}

/// Field types that come from elsewhere than the derive.
macro_rules! model {
    ($name:ident { $($fields:tt)* }) => {
        #[derive(Modules)]
        struct $name { $($fields)* }
    };
}
model!(FromMacro { visit: Linear, name: Vec<Linear> });

#[test]
fn a_macro_can_pass_the_fields_on() {
    assert_eq!(names(&mut FromMacro { visit: layer(), name: vec![layer()] }), ["visit", "name.0"]);
}

/// The derive's own code warns of nothing.
#[deny(warnings)]
#[allow(dead_code, missing_docs)]
pub mod quiet {
    use fbgemm::{Linear, Modules};

    #[derive(Modules)]
    #[deprecated]
    pub struct Old {
        #[deprecated]
        a: Linear,
    }

    #[derive(Modules)]
    pub struct Public<T> {
        private: Private<T>,
    }

    #[derive(Modules)]
    struct Private<T>(T);

    #[derive(Modules)]
    pub enum Empty {}

    #[derive(Modules)]
    pub struct Unit;
}

/// A test of its own builds another crate for minutes; CI runs it by a second command.
#[test]
#[ignore = "builds other crates: cargo test --workspace -- --ignored builds_"]
fn builds_what_can_not_be_derived_into_clear_errors() {
    // As for documentation: the cases' build of its own, which is only checked, need not fetch or link FBGEMM.
    alone("derive::compile_errors", &[("DOCS_RS", "1")]);
}

#[test]
#[ignore = "runs with another environment"]
fn compile_errors() {
    trybuild::TestCases::new().compile_fail("tests/models/ui/*.rs");
}
