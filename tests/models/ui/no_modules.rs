use fbgemm::{Linear, Modules};

struct LayerNorm;

#[derive(Modules)]
struct Block {
    dense: Linear,
    norm: LayerNorm,
}

fn main() {}
