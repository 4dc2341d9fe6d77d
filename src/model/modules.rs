//! The walk over a model's layers by dotted name.

use super::names::join_name;
use crate::nn::embedding::{Embedding, EmbeddingBag};
use crate::nn::linear::Linear;
use crate::nn::recurrent::cell::{Cell, HasCell};
use crate::nn::recurrent::gru::{Gru, GruCell};
use crate::nn::recurrent::lstm::{Lstm, LstmCell};
use crate::nn::recurrent::rnn::{Rnn, RnnCell};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};

/// One of a model's layers, of any kind.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Module<'a> {
    /// A linear layer.
    Linear(&'a Linear),
    /// An embedding, by itself or in an [`EmbeddingBag`].
    Embedding(&'a Embedding),
}

/// One of a model's layers, to be changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ModuleMut<'a> {
    /// A linear layer.
    Linear(&'a mut Linear),
    /// An embedding, by itself or in an [`EmbeddingBag`].
    Embedding(&'a mut Embedding),
}

/// A model, or a part of one, whose layers can be walked by dotted name: linear layers and embeddings.
///
/// Derive it: every field's layers are found under the field's name, through `Vec`, arrays, `Option`, `Box`, maps,
/// tuples and enums. Numbers, strings and the like have none.
///
/// ```
/// use fbgemm::{Int8Scheme, Linear, Modules, QuantizeOptions, quantize_modules};
///
/// #[derive(Modules)]
/// struct Block {
///     #[module(rename = "self")] // names that are no Rust identifiers
///     self_attention: Linear,
///     feed_forward: Vec<Linear>,
///     #[module(skip)] // nothing to quantize in there
///     norm: LayerNorm,
/// }
/// struct LayerNorm;
///
/// let layer = || Linear::new(vec![0.5; 64], None, 8, 8);
/// let mut block = Block { self_attention: layer()?, feed_forward: vec![layer()?, layer()?], norm: LayerNorm };
/// let report = quantize_modules(&mut block, &QuantizeOptions::new(Int8Scheme::accurate()).exclude("feed_forward.1"))?;
/// let names: Vec<&str> = report.quantized().map(|layer| layer.name.as_str()).collect();
/// assert_eq!(names, ["self", "feed_forward.0"]);
/// # Ok::<(), fbgemm::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say where its layers are",
    label = "no `Modules` here",
    note = "put `#[derive(fbgemm::Modules)]` on `{Self}`, or `#[module(skip)]` on the field if it has none"
)]
pub trait Modules {
    /// Shows each layer to `visit`, with its dotted name below `name` (empty at the top).
    fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>));

    /// As [`visit`](Self::visit), in the same order, to change the layers.
    fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut));

    /// [`visit`](Self::visit) of the linear layers alone.
    fn visit_linear<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, &'a Linear)) {
        self.visit(name, &mut |name, module| {
            if let Module::Linear(layer) = module {
                visit(name, layer);
            }
        });
    }

    /// [`visit_mut`](Self::visit_mut) of the linear layers alone.
    fn visit_linear_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        self.visit_mut(name, &mut |name, module| {
            if let ModuleMut::Linear(layer) = module {
                visit(name, layer);
            }
        });
    }
}

/// A layer is shown as it is.
macro_rules! layers {
    ($($type:ident),*) => {$(
        impl Modules for $type {
            fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
                visit(name, Module::$type(self));
            }

            fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
                visit(name, ModuleMut::$type(self));
            }
        }
    )*};
}
layers!(Linear, Embedding);

/// Its embedding, under the bag's own name.
impl Modules for EmbeddingBag {
    fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
        self.embedding.visit(name, visit);
    }

    fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
        self.embedding.visit_mut(name, visit);
    }
}

/// A cell's linear layers by the names of their weights in PyTorch, with what comes behind those: `weight_ih_l0_reverse`.
fn visit_cell<'a>(cell: &'a Cell, name: &str, suffix: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
    for (part, layer) in [("weight_ih", &cell.ih), ("weight_hh", &cell.hh)] {
        visit(&join_name(name, format_args!("{part}{suffix}")), Module::Linear(layer));
    }
}

fn visit_cell_mut(cell: &mut Cell, name: &str, suffix: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
    for (part, layer) in [("weight_ih", &mut cell.ih), ("weight_hh", &mut cell.hh)] {
        visit(&join_name(name, format_args!("{part}{suffix}")), ModuleMut::Linear(layer));
    }
}

/// What comes behind a name in the `i`th cell of layers.
fn cell_suffix(i: usize, bidirectional: bool) -> String {
    match bidirectional {
        false => format!("_l{i}"),
        true => format!("_l{}{}", i / 2, if i.is_multiple_of(2) { "" } else { "_reverse" }),
    }
}

macro_rules! recurrent {
    ($($cell:ident $layers:ident),*) => {$(
        /// Its two linear layers, `weight_ih` and `weight_hh`.
        impl Modules for $cell {
            fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
                visit_cell(self.cell(), name, "", visit);
            }

            fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
                visit_cell_mut(self.cell_mut(), name, "", visit);
            }
        }

        /// The linear layers of its cells, by PyTorch's names of their weights: `weight_ih_l0`, `weight_hh_l0`,
        /// `weight_ih_l0_reverse`, ...
        impl Modules for $layers {
            fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
                for (i, cell) in self.cells.iter().enumerate() {
                    visit_cell(cell.cell(), name, &cell_suffix(i, self.is_bidirectional()), visit);
                }
            }

            fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
                let bidirectional = self.is_bidirectional();
                for (i, cell) in self.cells.iter_mut().enumerate() {
                    visit_cell_mut(cell.cell_mut(), name, &cell_suffix(i, bidirectional), visit);
                }
            }
        }
    )*};
}
recurrent!(LstmCell Lstm, GruCell Gru, RnnCell Rnn);

/// Walks what an expression iterates over, in both ways.
macro_rules! walk {
    ([$($generics:tt)*] $type:ty, $this:ident, $iter:ident, $iter_mut:ident, ($part:pat, $child:ident) => $label:expr) => {
        impl<$($generics)*> Modules for $type {
            fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
                let $this = self;
                for ($part, $child) in $iter!($this) {
                    $child.visit(&join_name(name, $label), visit);
                }
            }

            fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
                let $this = self;
                for ($part, $child) in $iter_mut!($this) {
                    $child.visit_mut(&join_name(name, $label), visit);
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

walk!([T: Modules] [T], this, numbered, numbered_mut, (i, child) => i);
walk!([T: Modules] Vec<T>, this, numbered, numbered_mut, (i, child) => i);
walk!([T: Modules, const N: usize] [T; N], this, numbered, numbered_mut, (i, child) => i);
walk!([K: Ord + std::fmt::Display, V: Modules] BTreeMap<K, V>, this, by_key, by_key_mut, (key, child) => key);
walk!(
    [K: Ord + Hash + std::fmt::Display, V: Modules, S: BuildHasher] HashMap<K, V, S>,
    this, by_key, by_key_mut, (key, child) => key
);

/// What adds no name of its own.
macro_rules! transparent {
    ($($type:ty),*) => {$(
        impl<T: Modules + ?Sized> Modules for $type {
            fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
                (**self).visit(name, visit);
            }

            fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
                (**self).visit_mut(name, visit);
            }
        }
    )*};
}
transparent!(Box<T>, &mut T);

impl<T: Modules> Modules for Option<T> {
    fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
        if let Some(child) = self {
            child.visit(name, visit);
        }
    }

    fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
        if let Some(child) = self {
            child.visit_mut(name, visit);
        }
    }
}

macro_rules! tuples {
    ($(($($type:ident $index:tt),+)),*) => {$(
        impl<$($type: Modules),+> Modules for ($($type,)+) {
            fn visit<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&str, Module<'a>)) {
                $(self.$index.visit(&join_name(name, $index), visit);)+
            }

            fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(&str, ModuleMut)) {
                $(self.$index.visit_mut(&join_name(name, $index), visit);)+
            }
        }
    )*};
}
tuples!((A 0), (A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3));

/// Plain values have no layers.
macro_rules! without {
    ($($type:ty),*) => {$(
        impl Modules for $type {
            fn visit<'a>(&'a self, _: &str, _: &mut dyn FnMut(&str, Module<'a>)) {}
            fn visit_mut(&mut self, _: &str, _: &mut dyn FnMut(&str, ModuleMut)) {}
        }
    )*};
}
without!((), bool, char, f32, f64, i8, i16, i32, i64, isize, u8, u16, u32, u64, usize, i128, u128, String, str, &str);

impl<T> Modules for std::marker::PhantomData<T> {
    fn visit<'a>(&'a self, _: &str, _: &mut dyn FnMut(&str, Module<'a>)) {}
    fn visit_mut(&mut self, _: &str, _: &mut dyn FnMut(&str, ModuleMut)) {}
}
