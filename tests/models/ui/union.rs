use fbgemm::Modules;

#[derive(Modules)]
union Overlaid {
    a: u32,
    b: f32,
}

fn main() {}
