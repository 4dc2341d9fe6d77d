use fbgemm::LinearModules;

#[derive(LinearModules)]
union Overlaid {
    a: u32,
    b: f32,
}

fn main() {}
