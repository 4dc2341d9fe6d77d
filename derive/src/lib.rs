//! The derive macro of the crate `fbgemm`: tells where a model's layers are.

mod expand;

/// Implements `Modules` for a struct or an enum: each field's layers are found under the field's name, a
/// tuple's under its index. The single field of a tuple struct or variant adds no name, nor does the variant.
///
/// Attributes of a field:
/// - `#[module(skip)]`: there are no layers in it; its type need not implement the trait.
/// - `#[module(rename = "self")]`: its name in checkpoints, where that is another; it may have dots.
/// - `#[module(flatten)]`: it adds no name.
///
/// ```ignore
/// #[derive(Modules)]
/// struct Block {
///     #[module(rename = "self")]
///     self_attention: Linear,    // self
///     feed_forward: Vec<Linear>, // feed_forward.0, feed_forward.1, ...
///     #[module(skip)]
///     norm: LayerNorm,
/// }
/// ```
///
/// The trait's own page has an example that runs.
#[proc_macro_derive(Modules, attributes(module))]
pub fn modules(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand::expand(input.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
