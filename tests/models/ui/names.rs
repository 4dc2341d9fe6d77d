use fbgemm::{Linear, LinearModules};

#[derive(LinearModules)]
struct SameName {
    a: Linear,
    #[linear(rename = "a")]
    b: Linear,
}

#[derive(LinearModules)]
struct SameIndex(#[linear(rename = "1")] Linear, Linear);

fn main() {}
