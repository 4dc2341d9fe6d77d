use fbgemm::{Linear, Modules};

#[derive(Modules)]
struct SameName {
    a: Linear,
    #[module(rename = "a")]
    b: Linear,
}

#[derive(Modules)]
struct SameIndex(#[module(rename = "1")] Linear, Linear);

fn main() {}
