use fbgemm::{Linear, LinearModules};

struct LayerNorm;

#[derive(LinearModules)]
struct Block {
    dense: Linear,
    norm: LayerNorm,
}

fn main() {}
