//! From a type's definition to its implementation of `Modules`, or to what is wrong with it. Apart from the macro, so
//! that `hardening` can call it, too.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use std::collections::HashSet;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, Fields, Generics, Ident, Index, LitStr, Result, Type, parse_quote};

/// The implementation of `Modules` for a struct or an enum, or all errors in it.
pub fn expand(input: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(input)?;
    let mut errors = Errors::default();
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("module")) {
        errors.add(attribute, "`#[module(...)]` belongs on a field, not on the type");
    }
    let variants: Vec<(Option<&Ident>, &Fields)> = match &input.data {
        Data::Struct(data) => vec![(None, &data.fields)],
        Data::Enum(data) => data.variants.iter().map(|variant| (Some(&variant.ident), &variant.fields)).collect(),
        Data::Union(data) => {
            errors.add(data.union_token, "a union has no fields that can be walked: use a struct or an enum");
            Vec::new()
        }
    };
    if let Data::Enum(data) = &input.data {
        for attribute in data.variants.iter().flat_map(|variant| &variant.attrs) {
            if attribute.path().is_ident("module") {
                errors.add(attribute, "`#[module(...)]` belongs on a field, not on a variant");
            }
        }
    }

    let mut walked = Vec::new();
    let (mut arms, mut arms_mut) = (Vec::new(), Vec::new());
    for (variant, fields) in variants {
        let children = children(fields, &mut errors);
        let path = variant.map_or_else(|| quote!(Self), |variant| quote!(Self::#variant));
        let bindings = children.iter().map(|Child { member, binding, .. }| quote!(#member: #binding,));
        let pattern = quote!(#path { #(#bindings)* .. });
        let calls = |method: &str| {
            let calls = children.iter().map(|Child { binding, part, ty, .. }| {
                // At the field's type, so that the compiler shows that when it has no layers to tell of;
                // resolved here, as the type may come from a `macro_rules!` that does not see `visit`.
                let span = ty.span().resolved_at(Span::call_site());
                let method = Ident::new(method, span);
                let name = match part {
                    Some(part) => quote!(&::fbgemm::join_name(name, #part)),
                    None => quote!(name),
                };
                quote_spanned!(span=> <#ty as ::fbgemm::Modules>::#method(#binding, #name, visit);)
            });
            quote!(#(#calls)*)
        };
        let (shared, exclusive) = (calls("visit"), calls("visit_mut"));
        arms.push(quote!(#pattern => { #shared }));
        arms_mut.push(quote!(#pattern => { #exclusive }));
        walked.extend(children.into_iter().map(|child| child.ty));
    }
    errors.result()?;

    let name = &input.ident;
    let generics = bounded(&input.generics, name, &walked);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    // Of an enum without variants there is no value to match by reference.
    let body =
        |arms: &[TokenStream]| if arms.is_empty() { quote!(match *self {}) } else { quote!(match self { #(#arms)* }) };
    let (body, body_mut) = (body(&arms), body(&arms_mut));
    Ok(quote! {
        #[automatically_derived]
        #[allow(deprecated, unused_variables)]
        impl #impl_generics ::fbgemm::Modules for #name #type_generics #where_clause {
            fn visit<'module>(
                &'module self,
                name: &::core::primitive::str,
                visit: &mut dyn ::core::ops::FnMut(&::core::primitive::str, ::fbgemm::Module<'module>),
            ) {
                #body
            }

            fn visit_mut(
                &mut self,
                name: &::core::primitive::str,
                visit: &mut dyn ::core::ops::FnMut(&::core::primitive::str, ::fbgemm::ModuleMut<'_>),
            ) {
                #body_mut
            }
        }
    })
}

/// A field that is walked.
struct Child<'a> {
    /// What it is called in a pattern.
    member: TokenStream,
    /// What it is bound to.
    binding: Ident,
    /// Its part of the layers' names, if it adds one.
    part: Option<String>,
    ty: &'a Type,
}

fn children<'a>(fields: &'a Fields, errors: &mut Errors) -> Vec<Child<'a>> {
    let only_one = matches!(fields, Fields::Unnamed(fields) if fields.unnamed.len() == 1);
    let (mut children, mut seen) = (Vec::new(), HashSet::new());
    for (i, field) in fields.iter().enumerate() {
        let options = Options::of(field, errors);
        if options.skip.is_some() {
            continue;
        }
        let (member, own) = match &field.ident {
            Some(ident) => (quote!(#ident), ident.unraw().to_string()),
            None => {
                let index = Index::from(i);
                (quote!(#index), i.to_string())
            }
        };
        let part = match &options.rename {
            Some(name) => Some(name.value()),
            None if options.flatten.is_some() || only_one => None,
            None => Some(own),
        };
        if let Some(part) = &part
            && !seen.insert(part.clone())
        {
            let own = field.ident.as_ref().map_or_else(|| field.ty.span(), Ident::span);
            let at = options.rename.map_or(own, |name| name.span());
            errors.0.push(Error::new(at, format!("another field has the name {part:?}, too")));
        }
        children.push(Child { member, binding: format_ident!("field_{i}"), part, ty: &field.ty });
    }
    children
}

/// What the attributes of a field say.
#[derive(Default)]
struct Options {
    skip: Option<Span>,
    flatten: Option<Span>,
    rename: Option<LitStr>,
}

impl Options {
    fn of(field: &Field, errors: &mut Errors) -> Self {
        let mut options = Self::default();
        for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("module")) {
            let mut any = false;
            let parsed = attribute.parse_nested_meta(|meta| {
                any = true;
                let twice = |before: bool| {
                    if before { Err(meta.error("it is there twice, expected once")) } else { Ok(()) }
                };
                if meta.path.is_ident("skip") {
                    twice(options.skip.is_some())?;
                    options.skip = Some(meta.path.span());
                } else if meta.path.is_ident("flatten") {
                    twice(options.flatten.is_some())?;
                    options.flatten = Some(meta.path.span());
                } else if meta.path.is_ident("rename") {
                    twice(options.rename.is_some())?;
                    let name: LitStr = meta.value()?.parse()?;
                    let text = name.value();
                    if text.is_empty() || text.starts_with('.') || text.ends_with('.') {
                        let what = "expected a name that is not empty and neither begins nor ends with a dot";
                        return Err(Error::new(name.span(), what));
                    }
                    options.rename = Some(name);
                } else {
                    return Err(meta.error("expected `skip`, `flatten` or `rename = \"name\"`"));
                }
                Ok(())
            });
            if let Err(e) = parsed {
                errors.0.push(e);
            } else if !any {
                errors.add(
                    attribute,
                    "expected `#[module(skip)]`, `#[module(flatten)]` or `#[module(rename = \"name\")]`",
                );
            }
        }
        let others = options.flatten.is_some() || options.rename.is_some();
        if let (Some(span), true) = (options.skip, others) {
            errors.0.push(Error::new(span, "a field that is skipped has no name to change"));
        } else if let (Some(span), true) = (options.flatten, options.rename.is_some()) {
            errors.0.push(Error::new(span, "`flatten` adds no name, and `rename` adds one: expected one of them"));
        }
        options
    }
}

/// The type's generics, with what the walk needs of their parameters.
fn bounded(generics: &Generics, name: &Ident, walked: &[&Type]) -> Generics {
    let parameters: Vec<&Ident> = generics.type_params().map(|parameter| &parameter.ident).collect();
    let mut bounded = generics.clone();
    for ty in walked {
        let words = words(quote!(#ty));
        let mentioned: Vec<_> = parameters.iter().filter(|parameter| words.contains(**parameter)).collect();
        if mentioned.is_empty() {
            continue;
        }
        let clause = &mut bounded.make_where_clause().predicates;
        if words.contains(name) || words.iter().any(|word| word == "Self") {
            // A type that holds itself: a bound on the field's type would go round in a circle.
            clause.extend(
                mentioned
                    .iter()
                    .map(|parameter| -> syn::WherePredicate { parse_quote!(#parameter: ::fbgemm::Modules) }),
            );
        } else {
            clause.push(parse_quote!(#ty: ::fbgemm::Modules));
        }
    }
    bounded
}

/// All identifiers in some tokens.
fn words(tokens: TokenStream) -> HashSet<Ident> {
    let mut found = HashSet::new();
    for token in tokens {
        match token {
            proc_macro2::TokenTree::Ident(ident) => drop(found.insert(ident)),
            proc_macro2::TokenTree::Group(group) => found.extend(words(group.stream())),
            _ => {}
        }
    }
    found
}

/// All that is wrong with a type, to be said at once.
#[derive(Default)]
struct Errors(Vec<Error>);

impl Errors {
    fn add(&mut self, at: impl quote::ToTokens, what: &str) {
        self.0.push(Error::new_spanned(at, what));
    }

    fn result(self) -> Result<()> {
        match self.0.into_iter().reduce(|mut all, error| {
            all.combine(error);
            all
        }) {
            Some(all) => Err(all),
            None => Ok(()),
        }
    }
}
