use fbgemm::{Linear, LinearModules};

#[derive(LinearModules)]
struct SameName {
    a: Linear,
    #[linear(rename = "a")]
    b: Linear,
}

fn main() {}
