//! PyTorch's own outputs: bit for bit with its sigmoid and tanh, and nearly with the portable ones.

use crate::{Sizes, quantized};
use fbgemm::{Activations, Error, Int8Scheme, ModelFile};
use fbgemm_testkit::cases::{Case, CaseFile};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::golden;
use fbgemm_testkit::provider::not_run;
use fbgemm_testkit::random::normal;
use fbgemm_testkit::recurrent::{Given, run};

const FILES: [(&str, usize); 2] = [("recurrent/recurrent", 24), ("recurrent/cells", 36)];

/// Each case of a recurrent layer with what it gives here.
fn each(activations: Activations, mut check: impl FnMut(&str, &Case, Given)) {
    for (name, expected) in FILES {
        let file = CaseFile::read(&golden(name)).unwrap();
        let mut count = 0;
        for case in file.cases().unwrap() {
            if let Some(given) = run(&case, activations).unwrap() {
                check(name, &case, given.unwrap());
                count += 1;
            }
        }
        assert_eq!(count, expected, "{name}");
    }
}

/// The largest difference to PyTorch's output and states.
fn difference(case: &Case, given: &Given) -> f32 {
    let all = [("output", Some(&given.output)), ("h_n", Some(&given.h)), ("c_n", given.c.as_ref())];
    let of_one = |(name, ours): (&str, Option<&Vec<f32>>)| {
        if !case.has(name) {
            return 0.0;
        }
        let (_, expected) = case.tensor::<f32>(name).unwrap();
        let ours = ours.unwrap();
        assert_eq!(ours.len(), expected.len(), "case {}: {name}", case.name);
        ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    all.into_iter().map(of_one).fold(0.0, f32::max)
}

/// PyTorch's functions, where they give here the bits that they gave where the cases were made: MKL's depend on the CPU.
fn as_where_the_cases_were_made() -> Option<Activations> {
    let activations = match Activations::as_pytorch() {
        Ok(activations) => activations,
        Err(Error::NoPytorchMath { provider, .. }) => {
            assert_eq!(provider, "prefix");
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    let file = CaseFile::read(&golden("recurrent/cells")).unwrap();
    let cases = file.cases().unwrap();
    let case = cases.iter().find(|case| case.op == "activations").unwrap();
    let (shape, input) = case.tensor::<f32>("input").unwrap();
    let same = |name: &str, one: fn(Activations, &mut [f32]) -> fbgemm::Result<()>| {
        let mut ours = input.clone();
        ours.chunks_mut(shape[1]).try_for_each(|row| one(activations, row)).unwrap();
        bits(&ours) == bits(&case.tensor::<f32>(name).unwrap().1)
    };
    (same("sigmoid", Activations::sigmoid) && same("tanh", Activations::tanh)).then_some(activations)
}

#[test]
fn pytorchs_layers_and_cells_are_given_bit_for_bit_with_its_activations() {
    let Some(activations) = as_where_the_cases_were_made() else {
        let test = "pytorchs_layers_and_cells_are_given_bit_for_bit_with_its_activations";
        return not_run(test, "PyTorch's own activations, as they are on the CPU that made the cases");
    };
    // Its fp16 sums have another order with 256-bit registers.
    let wide = matches!(fbgemm::cpu_support().unwrap(), fbgemm::Isa::Avx512 | fbgemm::Isa::Avx512Vnni);
    // The older cells' inputs have 8 bits, whose sums saturate without VNNI.
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    each(activations, |file, case, given| {
        if (wide || !case.op.ends_with("fp16")) && (exact || !case.op.ends_with("int8")) {
            assert_eq!(difference(case, &given), 0.0, "{file}: case {} of {}", case.name, case.op);
        }
    });
}

/// What examples/export.py made of PyTorch's own quantized layers, the older ones of torch.jit.quantized among them.
#[test]
fn exported_layers_give_pytorchs_outputs() {
    let folder = fbgemm_testkit::files::golden_folder().join("exported");
    let open = |name: &str| ModelFile::open(folder.join(format!("{name}.safetensors"))).unwrap();
    let (file, outputs) = (open("recurrent"), open("recurrent-outputs"));
    let expected = |name: &str| outputs.tensor_f32(name).unwrap().1;
    let as_made = as_where_the_cases_were_made();
    let wide = matches!(fbgemm::cpu_support().unwrap(), fbgemm::Isa::Avx512 | fbgemm::Isa::Avx512Vnni);
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    for (activations, tolerance) in
        as_made.map(|activations| (activations, 0.0)).into_iter().chain([(Activations::portable(), 0.02)])
    {
        let check = |name: &str, ours: &[f32], holds: bool| {
            let expected = expected(name);
            assert_eq!(ours.len(), expected.len(), "{name}");
            let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance || !holds, "{name}: {worst:e} with {activations}");
        };
        let lstm = |name: &str, input: &str, holds: bool| {
            let lstm = file.lstm(name).unwrap().with_activations(activations);
            let (mut h, mut c) = (lstm.zero_state(3).unwrap(), lstm.zero_state(3).unwrap());
            check(name, &lstm.forward(&expected(input), &mut h, &mut c).unwrap(), holds);
        };
        lstm("lstm", "input", true);
        let gru = file.gru("gru").unwrap().with_activations(activations);
        check("gru", &gru.forward(&expected("lstm"), &mut gru.zero_state(3).unwrap()).unwrap(), true);
        lstm("fp16", "gru", wide || tolerance > 0.0);
        lstm("old", "fp16", exact);
        let (mut h, mut c) = (vec![0.0; 60], vec![0.0; 60]);
        let cell = file.lstm_cell("cell").unwrap().with_activations(activations);
        cell.forward(&expected("old")[..3 * 68], &mut h, &mut c).unwrap();
        check("cell", &h, true);
        let mut h = vec![0.0; 60];
        let cell = file.gru_cell("old_cell").unwrap().with_activations(activations);
        cell.forward(&expected("cell"), &mut h).unwrap();
        check("old_cell", &h, exact);
        let mut h = vec![0.0; 21];
        let cell = file.rnn_cell("last", fbgemm::Nonlinearity::Relu).unwrap().with_activations(activations);
        cell.forward(&expected("old_cell"), &mut h).unwrap();
        check("last", &h, true);
    }
    // And float layers are quantized as this crate does.
    let (floats, quantized) = (open("recurrent-float"), open("recurrent-accurate"));
    for name in ["gru.weight_ih_l0", "gru.weight_hh_l0", "cell.weight_ih", "cell.weight_hh"] {
        let (shape, weight) = floats.tensor_f32(name).unwrap();
        let scheme = Int8Scheme::accurate();
        let expected = fbgemm::quantize_weight_as(&weight, shape[0], shape[1], scheme.weights).unwrap();
        let layer = quantized.portable(name).unwrap();
        assert!(layer.weight() == &expected && layer.input_scheme() == scheme.inputs, "{name}");
        assert_eq!(layer.bias().unwrap(), floats.tensor_f32(&name.replace("weight", "bias")).unwrap().1);
    }
}

/// A last bit can decide a rounding of the hidden state, and so a step of its quantization, 1/127 of its range: what that
/// makes of the outputs, over all steps and layers of the cases, is within this. In fp16, where nothing is rounded so,
/// last bits stay last bits.
#[test]
fn the_portable_activations_are_near_pytorchs_outputs() {
    const TOLERANCE: f32 = 0.02;
    const OF_FP16: f32 = 2e-6;
    let exact = fbgemm::cpu_support().unwrap().sums_pairs_exactly();
    let (mut equal, mut all, mut worst) = (0, 0, 0f32);
    each(Activations::portable(), |file, case, given| {
        if !exact && case.op.ends_with("int8") {
            return;
        }
        let difference = difference(case, &given);
        let tolerance = if case.op.ends_with("fp16") { OF_FP16 } else { TOLERANCE };
        assert!(difference <= tolerance, "{file}: case {} of {}: {difference:e}", case.name, case.op);
        (equal, all, worst) = (equal + usize::from(difference < 1e-6), all + 1, worst.max(difference));
    });
    println!("{equal} of {all} cases within 1e-6, the worst within {worst:e}");
    assert!(10 * equal >= 8 * all, "{equal} of {all} cases within 1e-6, the worst within {worst:e}");
}

/// With weights of seven bits and the portable activations every CPU and provider gives these bits.
#[test]
fn portable_layers_give_the_bits_that_they_gave_where_this_was_written() {
    let fingerprint = |values: &[f32]| {
        let bytes = values.iter().flat_map(|x| x.to_bits().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let sizes = Sizes { input: 40, hidden: 50, layers: 2, both: true };
    let (time, batch) = (20, 3);
    let input = normal(time * batch * sizes.input, 3, 1.0);
    let lstm = quantized(&sizes.lstm(1), Int8Scheme::portable());
    let (mut h, mut c) = (lstm.zero_state(batch).unwrap(), lstm.zero_state(batch).unwrap());
    let output = lstm.forward(&input, &mut h, &mut c).unwrap();
    let gru = quantized(&sizes.gru(2), Int8Scheme::portable());
    let of_gru = gru.forward(&input, &mut gru.zero_state(batch).unwrap()).unwrap();
    let all = [&output, &h, &c, &of_gru].map(|values| fingerprint(values));
    assert_eq!(all.map(|hash| format!("{hash:016x}")), EXPECTED);
}

const EXPECTED: [&str; 4] = ["e57e07d88600b34c", "9f8fa8d58228c0cb", "af5697e31d720c04", "ea9e94d22ad7863c"];
