use fbgemm::{Linear, Modules};

#[derive(Modules)]
#[module(skip)]
struct OnTheType {
    a: Linear,
}

#[derive(Modules)]
struct OnFields {
    #[module(ignore)]
    unknown: Linear,
    #[module]
    bare: Linear,
    #[module(skip, rename = "b")]
    contrary: Linear,
    #[module(flatten, rename = "c")]
    contrary_too: Linear,
    #[module(skip, skip)]
    twice: Linear,
    #[module(rename = "")]
    empty: Linear,
    #[module(rename = "a.")]
    dot: Linear,
    #[module(rename = 3)]
    number: Linear,
}

#[derive(Modules)]
enum OnVariants {
    #[module(skip)]
    One(Linear),
}

fn main() {}
