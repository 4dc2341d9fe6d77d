//! The walk over a model's layers by dotted name.

use crate::nn::linear::Linear;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};

/// A model, or a part of one, whose linear layers can be walked by dotted name.
///
/// Derive it: every field's linear layers are found under the field's name, through `Vec`, arrays, `Option`, `Box`,
/// maps, tuples and enums. Numbers, strings and the like have none.
///
/// ```
/// use fbgemm::{Int8Scheme, Linear, LinearModules, QuantizeOptions, quantize_linear_modules};
///
/// #[derive(LinearModules)]
/// struct Block {
///     #[linear(rename = "self")] // names that are no Rust identifiers
///     self_attention: Linear,
///     feed_forward: Vec<Linear>,
///     #[linear(skip)] // nothing to quantize in there
///     norm: LayerNorm,
/// }
/// struct LayerNorm;
///
/// let layer = || Linear::new(vec![0.5; 64], None, 8, 8);
/// let mut block = Block { self_attention: layer()?, feed_forward: vec![layer()?, layer()?], norm: LayerNorm };
/// let report = quantize_linear_modules(&mut block, &QuantizeOptions::new(Int8Scheme::accurate()).exclude("feed_forward.1"))?;
/// let names: Vec<&str> = report.quantized().map(|layer| layer.name.as_str()).collect();
/// assert_eq!(names, ["self", "feed_forward.0"]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say where its linear layers are",
    label = "no `LinearModules` here",
    note = "put `#[derive(fbgemm::LinearModules)]` on `{Self}`, or `#[linear(skip)]` on the field if it has none"
)]
pub trait LinearModules {
    /// Shows each linear layer to `visit`, with its dotted name below `name` (empty at the top).
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear));

    /// As [`visit_linear`](Self::visit_linear), in the same order, to change the layers.
    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear));
}

/// `name.part`, or `part` at the top: for implementations of [`LinearModules`].
pub fn join_name(name: &str, part: impl std::fmt::Display) -> String {
    if name.is_empty() { part.to_string() } else { format!("{name}.{part}") }
}

impl LinearModules for Linear {
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
        visit(name, self);
    }

    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(name, self);
    }
}

/// Walks what an expression iterates over, in both ways.
macro_rules! walk {
    ([$($generics:tt)*] $type:ty, $this:ident, $iter:ident, $iter_mut:ident, ($part:pat, $child:ident) => $label:expr) => {
        impl<$($generics)*> LinearModules for $type {
            fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
                let $this = self;
                for ($part, $child) in $iter!($this) {
                    $child.visit_linear(&join_name(name, $label), visit);
                }
            }

            fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
                let $this = self;
                for ($part, $child) in $iter_mut!($this) {
                    $child.visit_linear_mut(&join_name(name, $label), visit);
                }
            }
        }
    };
}

macro_rules! numbered {
    ($this:ident) => {
        $this.iter().enumerate()
    };
}
macro_rules! numbered_mut {
    ($this:ident) => {
        $this.iter_mut().enumerate()
    };
}
/// Hash maps have no order of their own: by key, so that every walk is the same.
macro_rules! by_key {
    ($this:ident) => {{
        let mut entries: Vec<_> = $this.iter().collect();
        entries.sort_by(|a, b| a.0.cmp(b.0));
        entries
    }};
}
macro_rules! by_key_mut {
    ($this:ident) => {{
        let mut entries: Vec<_> = $this.iter_mut().collect();
        entries.sort_by(|a, b| a.0.cmp(b.0));
        entries
    }};
}

walk!([T: LinearModules] [T], this, numbered, numbered_mut, (i, child) => i);
walk!([T: LinearModules] Vec<T>, this, numbered, numbered_mut, (i, child) => i);
walk!([T: LinearModules, const N: usize] [T; N], this, numbered, numbered_mut, (i, child) => i);
walk!([K: Ord + std::fmt::Display, V: LinearModules] BTreeMap<K, V>, this, by_key, by_key_mut, (key, child) => key);
walk!(
    [K: Ord + Hash + std::fmt::Display, V: LinearModules, S: BuildHasher] HashMap<K, V, S>,
    this, by_key, by_key_mut, (key, child) => key
);

/// What adds no name of its own.
macro_rules! transparent {
    ($($type:ty),*) => {$(
        impl<T: LinearModules + ?Sized> LinearModules for $type {
            fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
                (**self).visit_linear(name, visit);
            }

            fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
                (**self).visit_linear_mut(name, visit);
            }
        }
    )*};
}
transparent!(Box<T>, &mut T);

impl<T: LinearModules> LinearModules for Option<T> {
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
        if let Some(child) = self {
            child.visit_linear(name, visit);
        }
    }

    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        if let Some(child) = self {
            child.visit_linear_mut(name, visit);
        }
    }
}

macro_rules! tuples {
    ($(($($type:ident $index:tt),+)),*) => {$(
        impl<$($type: LinearModules),+> LinearModules for ($($type,)+) {
            fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
                $(self.$index.visit_linear(&join_name(name, $index), visit);)+
            }

            fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
                $(self.$index.visit_linear_mut(&join_name(name, $index), visit);)+
            }
        }
    )*};
}
tuples!((A 0), (A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3));

/// Plain values have no linear layers.
macro_rules! without {
    ($($type:ty),*) => {$(
        impl LinearModules for $type {
            fn visit_linear<'a>(&'a self, _: &str, _: &mut dyn FnMut(&str, &'a Linear)) {}
            fn visit_linear_mut(&mut self, _: &str, _: &mut dyn FnMut(&str, &mut Linear)) {}
        }
    )*};
}
without!((), bool, char, f32, f64, i8, i16, i32, i64, isize, u8, u16, u32, u64, usize, i128, u128, String, str, &str);

impl<T> LinearModules for std::marker::PhantomData<T> {
    fn visit_linear<'a>(&'a self, _: &str, _: &mut dyn FnMut(&str, &'a Linear)) {}
    fn visit_linear_mut(&mut self, _: &str, _: &mut dyn FnMut(&str, &mut Linear)) {}
}
