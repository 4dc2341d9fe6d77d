use fbgemm::{Linear, LinearModules};

#[derive(LinearModules)]
#[linear(skip)]
struct OnTheType {
    a: Linear,
}

#[derive(LinearModules)]
struct OnFields {
    #[linear(ignore)]
    unknown: Linear,
    #[linear]
    bare: Linear,
    #[linear(skip, rename = "b")]
    contrary: Linear,
    #[linear(flatten, rename = "c")]
    contrary_too: Linear,
    #[linear(skip, skip)]
    twice: Linear,
    #[linear(rename = "")]
    empty: Linear,
    #[linear(rename = "a.")]
    dot: Linear,
    #[linear(rename = 3)]
    number: Linear,
}

#[derive(LinearModules)]
enum OnVariants {
    #[linear(skip)]
    One(Linear),
}

fn main() {}
