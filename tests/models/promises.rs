//! What the documentation promises at the edges: models left as they were, sizes beyond counting, stored parameters
//! checked, and calls from where a thread ends.

use fbgemm::{
    Error, FloatLinear, Fp16Linear, InputScheme, Int8Scheme, Linear, LinearScheme, PortableLinear, QuantizeOptions,
    QuantizedLinear, QuantizedWeight, U8Params, WeightScheme, quantize_modules,
};
use fbgemm_testkit::process::{again, memory_beside_libraries, succeed};
use fbgemm_testkit::random::normal;
use std::cell::RefCell;
use std::error::Error as _;

fn float(out_features: usize, in_features: usize) -> Linear {
    Linear::new(normal(out_features * in_features, 1, 0.1), None, out_features, in_features).unwrap()
}

#[test]
fn a_layer_too_large_for_its_target_leaves_the_whole_model() {
    // Padded to 512 inputs, the second has 2³¹ elements in fp16; in int8 it fits.
    let mut model = vec![float(8, 8), float(1 << 22, 1)];
    let error = quantize_modules(&mut model, &QuantizeOptions::new(LinearScheme::Fp16)).unwrap_err();
    assert!(matches!(&error, Error::InLayer { name, .. } if name == "1"), "{error}");
    assert!(error.chain().contains("too large"), "{}", error.chain());
    assert!(model.iter().all(|layer| matches!(layer, Linear::Float(_))));
}

#[test]
fn a_sum_beyond_32_bits_leaves_the_whole_model() {
    // All weights 1: every q is 127 and the zero point −128, so that the offset of the row is 255 · in_features.
    let long = Linear::new(vec![1.0; 9_000_000], None, 1, 9_000_000).unwrap();
    let mut model = vec![float(8, 8), long];
    let error = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap_err();
    assert!(error.chain().contains("int32 sum"), "{}", error.chain());
    assert!(model.iter().all(|layer| matches!(layer, Linear::Float(_))));
}

#[test]
fn where_memory_runs_out_the_error_says_what_is_left() {
    let mut command = std::process::Command::new("sh");
    let shell = memory_beside_libraries(1_540_000) + " exec \"$@\"";
    command.args(["-c", &shell, "sh"]).arg(again().get_program());
    command.args(["--exact", "promises::quantizing_without_memory", "--ignored", "--test-threads", "1"]);
    assert!(succeed(&mut command).contains("1 passed"));
}

#[test]
#[ignore = "needs a process with little memory"]
fn quantizing_without_memory() {
    let mut model = vec![float(8, 8), Linear::new(vec![0.5; 300_000_000], None, 1000, 300_000).unwrap(), float(8, 8)];
    let error = quantize_modules(&mut model, &QuantizeOptions::new(Int8Scheme::pytorch())).unwrap_err();
    assert!(matches!(error, Error::PartlyQuantized { quantized: 1, chosen: 3, .. }), "{}", error.chain());
    assert!(matches!(model[0], Linear::Int8(_)) && matches!(model[1], Linear::Float(_)));
    assert!(matches!(model[2], Linear::Float(_)));
    assert!(error.chain().contains("layer \"1\""), "{}", error.chain());
}

#[test]
fn row_sums_beyond_32_bits_are_no_garbage() {
    // Weights of 0, so that no sum overflows, and 9 million inputs at the top of their range, whose own sum does.
    const K: usize = 9_000_000;
    let weight = QuantizedWeight::per_tensor(vec![0; K], 0.5, 0, 1, K).unwrap();
    let layer = PortableLinear::new(weight, Some(vec![0.25])).unwrap().pack().unwrap();
    let input: Vec<f32> = vec![1.0; 2 * K];
    let per_row = layer.with_input(InputScheme::new().per_row());
    assert_eq!(per_row.forward(&input).unwrap(), [0.25, 0.25]);
}

#[test]
fn numbers_of_rows_beyond_counting_are_errors() {
    let layer = QuantizedLinear::new(&[0.5; 6], None, 2, 3, Int8Scheme::accurate()).unwrap();
    for rows in [usize::MAX, usize::MAX / 3, 1 << 31] {
        assert!(matches!(layer.warm_up([rows]), Err(Error::TooLarge { .. })), "{rows}");
        assert!(matches!(float(2, 3).warm_up([rows]), Err(Error::TooLarge { .. })), "{rows}");
    }
    assert_eq!(layer.suggested_tasks(usize::MAX, 4), 4);
    let shape = [usize::MAX, 2];
    let wrong = fbgemm::PlainTensor { name: "a", shape: &shape, values: &[] };
    let error = fbgemm::save_modules(&float(2, 2), &[wrong], "/nowhere").unwrap_err();
    assert_eq!(error, Error::WrongLength { what: "tensor", given: 0, expected: usize::MAX });
}

/// FBGEMM has thread-local buffers of its own: a destructor that runs after theirs gets an error, one before works.
#[test]
fn a_call_while_its_thread_ends_works_or_is_an_error() {
    struct Last {
        layers: [Linear; 3],
        works: bool,
    }
    impl Drop for Last {
        fn drop(&mut self) {
            for layer in &self.layers {
                let y = layer.forward(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
                match y {
                    Ok(y) => assert!(self.works && y.iter().all(|y| y.is_finite())),
                    Err(e) => assert!(!self.works && e.chain().contains("the thread is ending"), "{}", e.chain()),
                }
            }
            // Of another type, and without buffers of this crate's.
            let wide = self.layers[0].forward(&[1.0f64, 2.0, 3.0]);
            assert_eq!(wide.is_ok(), self.works);
            fbgemm::release_thread_buffer();
            assert_eq!(fbgemm::thread_buffer_bytes(), 0);
        }
    }
    thread_local!(static LAST: RefCell<Option<Last>> = const { RefCell::new(None) });
    let weight = [0.5; 6];
    let int8 = |scheme| Linear::from(QuantizedLinear::new(&weight, None, 2, 3, scheme).unwrap());
    let fp16 = Linear::from(Fp16Linear::new(&weight, None, 2, 3).unwrap());
    let layers = [int8(Int8Scheme::accurate()), int8(Int8Scheme::pytorch()), fp16];
    for works in [false, true] {
        let layers = layers.clone();
        let thread = std::thread::spawn(move || {
            let use_all = |layers: &[Linear; 3]| {
                for layer in layers {
                    layer.forward(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
                }
                layers[0].forward(&[1.0f64, 2.0, 3.0]).unwrap();
            };
            // Destructors run in the order opposite to that of first use: before or after those of the buffers.
            if works {
                use_all(&layers);
                LAST.set(Some(Last { layers, works }));
            } else {
                LAST.set(Some(Last { layers: layers.clone(), works }));
                use_all(&layers);
            }
        });
        thread.join().unwrap();
    }
}

#[test]
fn stored_parameters_are_checked_as_constructors_check_them() {
    let read = |text: &str| serde_json::from_str::<InputScheme>(text).map_err(|e| e.to_string());
    assert_eq!(read("\"per_row reduce_range\""), Ok(InputScheme::new().per_row().reduce_range()));
    assert_eq!(read("\"static 0.5 3\""), InputScheme::new().static_params(0.5, 3).map_err(|e| e.to_string()));
    for bad in ["static -1 0", "static 0.1 9999", "static NaN 0", "static 1e-45 0", "per_tensor reduce", ""] {
        assert!(read(&format!("{bad:?}")).is_err(), "{bad}");
        assert!(bad.parse::<InputScheme>().is_err(), "{bad}");
    }
    let scheme = Int8Scheme { weights: WeightScheme::new().symmetric(), inputs: InputScheme::new().per_row() };
    assert_eq!(serde_json::from_str::<Int8Scheme>(&serde_json::to_string(&scheme).unwrap()).unwrap(), scheme);
    let fp16 = LinearScheme::Fp16;
    assert_eq!(serde_json::from_str::<LinearScheme>(&serde_json::to_string(&fp16).unwrap()).unwrap(), fp16);

    // Each stored layer with one number changed to what no constructor lets through.
    let mut refused = 0;
    let mut refuse = |stored: serde_json::Value, read: &dyn Fn(serde_json::Value) -> bool| {
        let fields: Vec<String> = stored.as_object().unwrap().keys().cloned().collect();
        for field in fields {
            for bad in [serde_json::json!(0), serde_json::json!(9999), serde_json::json!([]), serde_json::json!(-1.5)] {
                let mut changed = stored.clone();
                if changed[&field] != bad && !(field == "bias" && bad.is_null()) {
                    changed[&field] = bad;
                    assert!(!read(changed.clone()), "{changed}");
                    refused += 1;
                }
            }
        }
    };
    let weight = [0.5, -1.0, 0.25, 1.5, 0.0, -0.5];
    let layer = QuantizedLinear::new(&weight, Some(vec![0.1, 0.2]), 2, 3, Int8Scheme::pytorch()).unwrap();
    refuse(serde_json::to_value(&layer).unwrap(), &|json| serde_json::from_value::<QuantizedLinear>(json).is_ok());
    refuse(serde_json::to_value(&layer).unwrap(), &|json| serde_json::from_value::<PortableLinear>(json).is_ok());
    let fp16 = Fp16Linear::new(&weight, Some(vec![0.1, 0.2]), 2, 3).unwrap();
    refuse(serde_json::to_value(&fp16).unwrap(), &|json| serde_json::from_value::<Fp16Linear>(json).is_ok());
    let float = FloatLinear::new(weight.to_vec(), Some(vec![0.1, 0.2]), 2, 3).unwrap();
    refuse(serde_json::to_value(&float).unwrap(), &|json| serde_json::from_value::<FloatLinear>(json).is_ok());
    assert!(refused > 60, "{refused}");
}

#[test]
fn an_error_has_its_cause_in_its_source_and_not_in_its_text() {
    let error = fbgemm::ModelFile::open("/nowhere/model.safetensors").unwrap_err();
    assert_eq!(error.to_string(), "/nowhere/model.safetensors");
    let cause = error.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    assert!(error.chain().starts_with("/nowhere/model.safetensors: No such file"), "{}", error.chain());

    let scheme = InputScheme::new().static_params(1e-30, 0).unwrap();
    let layer =
        QuantizedLinear::new(&[0.5], None, 1, 1, Int8Scheme { inputs: scheme, ..Int8Scheme::pytorch() }).unwrap();
    let error = layer.forward(&[1e9f32]).unwrap_err();
    assert!(matches!(error, Error::InputOverflow { value: 1e9, scale: 1e-30, .. }), "{error}");
}

#[test]
fn public_types_can_be_sent_printed_and_shared() {
    fn all<T: Send + Sync + std::fmt::Debug>() {}
    all::<Linear>();
    all::<QuantizedLinear>();
    all::<PortableLinear>();
    all::<FloatLinear>();
    all::<Fp16Linear>();
    all::<fbgemm::PackedMatrix>();
    all::<fbgemm::PackedMatrixFp16>();
    all::<QuantizedWeight>();
    all::<QuantizeOptions>();
    all::<fbgemm::CheckpointOptions>();
    all::<fbgemm::QuantizeReport>();
    all::<fbgemm::InputObserver>();
    all::<fbgemm::ModelFile>();
    all::<U8Params>();
    all::<LinearScheme>();
    all::<Error>();
    // What `anyhow::Error::from`, `Box<dyn Error + Send + Sync>` and `candle_core::Error::wrap` ask for.
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    error::<Error>();
}
