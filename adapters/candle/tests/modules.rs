//! The modules beside the layers that they hold: the same bits, no copies, and errors that say what is wrong.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Module, VarBuilder};
use fbgemm::{
    CheckpointOptions, EmbeddingFormat, InputScheme, Int8Scheme, Linear, LinearScheme, ModelFile, PlainTensor,
    QuantizeOptions, pack_embedding, quantize_checkpoint, save_modules,
};
use fbgemm_candle::{
    Error, QuantizedEmbedding, QuantizedLinear, quantized_embedding, quantized_linear, quantized_linear_b,
    quantized_linear_no_bias, var_builder,
};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::empty_folder;
use fbgemm_testkit::random::normal;
use half::{bf16, f16};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

thread_local! {
    /// Bytes that this thread has allocated.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator, called with what this one is called with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: as the caller vouches.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An error's text without the backtrace that candle adds where one is asked for (`RUST_BACKTRACE`).
fn text(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

fn allocated(mut work: impl FnMut()) -> usize {
    work(); // the thread's buffers, and FBGEMM's kernels
    let before = BYTES.get();
    work();
    BYTES.get() - before
}

const N: usize = 24;
const K: usize = 40;

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// A tensor's bits as `f32`, which holds every half exactly.
fn bits_of(tensor: &Tensor) -> Vec<u32> {
    bits(&tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
}

fn weight() -> (Tensor, Tensor) {
    (tensor(&normal(N * K, 1, 0.1), &[N, K]), tensor(&normal(N, 2, 1.0), &[N]))
}

fn module(scheme: impl Into<LinearScheme>) -> QuantizedLinear {
    let (weight, bias) = weight();
    QuantizedLinear::new(&weight, Some(&bias), scheme).unwrap()
}

#[test]
fn a_linear_module_gives_its_layers_bits_for_every_shape_type_and_layout() {
    for scheme in [LinearScheme::Int8(Int8Scheme::accurate()), Int8Scheme::pytorch().into(), LinearScheme::Fp16] {
        let module = module(scheme);
        let (weight, bias) = (normal(N * K, 1, 0.1), Some(normal(N, 2, 1.0)));
        let layer: Linear = match scheme {
            LinearScheme::Int8(scheme) => fbgemm::QuantizedLinear::new(&weight, bias, N, K, scheme).unwrap().into(),
            _ => fbgemm::Fp16Linear::new(&weight, bias, N, K).unwrap().into(),
        };
        let values = normal(2 * 3 * 5 * K, 3, 4.0);
        let expected = layer.forward(&values).unwrap();
        for shape in [&[30, K][..], &[6, 5, K], &[2, 3, 5, K]] {
            let y = module.forward(&tensor(&values, shape)).unwrap();
            assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[N]].concat());
            assert_eq!(bits_of(&y), bits(&expected));
        }
        let x = tensor(&values, &[30, K]);
        // Some rows of a tensor, which are contiguous from an offset on; a single one; none.
        let some = layer.forward(&values[7 * K..11 * K]).unwrap();
        assert_eq!(bits_of(&module.forward(&x.narrow(0, 7, 4).unwrap()).unwrap()), bits(&some));
        let one = module.forward(&x.get(7).unwrap()).unwrap();
        assert_eq!((one.dims(), bits_of(&one)), (&[N][..], bits(&layer.forward(&values[7 * K..8 * K]).unwrap())));
        assert_eq!(module.forward(&x.narrow(0, 7, 0).unwrap()).unwrap().dims(), [0, N]);
        // Not contiguous: column by column, and a part of each row of a wider one.
        let columns = x.t().unwrap().contiguous().unwrap();
        assert_eq!(bits_of(&module.forward(&columns.t().unwrap()).unwrap()), bits(&expected));
        let wide = Tensor::cat(&[&x, &x, &x], 1).unwrap().narrow(1, K, K).unwrap();
        assert!(!wide.is_contiguous());
        assert_eq!(bits_of(&module.forward(&wide).unwrap()), bits(&expected));
        // The other types.
        let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
        let y = module.forward(&x.to_dtype(DType::F16).unwrap()).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f16>().unwrap(), layer.forward(&halves).unwrap());
        let halves: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let y = module.forward(&x.to_dtype(DType::BF16).unwrap()).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<bf16>().unwrap(), layer.forward(&halves).unwrap());
        let y = module.forward(&x.to_dtype(DType::F64).unwrap()).unwrap();
        assert_eq!((y.dtype(), bits_of(&y)), (DType::F64, bits(&expected)));
    }
}

#[test]
fn a_pool_gives_the_same_bits() {
    let (n, k) = (768, 768);
    let module = QuantizedLinear::new(&tensor(&normal(n * k, 1, 0.1), &[n, k]), None, Int8Scheme::accurate()).unwrap();
    let x = tensor(&normal(128 * k, 3, 4.0), &[128, k]);
    assert!(module.layer().suggested_tasks(128, 2) > 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let together = pool.install(|| module.clone().with_rayon().forward(&x)).unwrap();
    assert_eq!(bits_of(&together), bits_of(&module.forward(&x).unwrap()));
}

#[test]
fn weights_of_other_types_and_layouts_are_quantized_as_if_converted_first() {
    let (weight, bias) = weight();
    let x = tensor(&normal(3 * K, 3, 4.0), &[3, K]);
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        for scheme in [LinearScheme::Int8(Int8Scheme::accurate()), Int8Scheme::pytorch().into(), LinearScheme::Fp16] {
            let (weight, bias) = (weight.to_dtype(dtype).unwrap(), bias.to_dtype(dtype).unwrap());
            let linear = candle_nn::Linear::new(weight.clone(), Some(bias.clone()));
            let direct = QuantizedLinear::from_linear(&linear, scheme).unwrap();
            let (weight, bias) = (weight.to_dtype(DType::F32).unwrap(), bias.to_dtype(DType::F32).unwrap());
            let detour = QuantizedLinear::new(&weight, Some(&bias), scheme).unwrap();
            assert_eq!(bits_of(&direct.forward(&x).unwrap()), bits_of(&detour.forward(&x).unwrap()), "{dtype:?}");
            let transposed = weight.t().unwrap().contiguous().unwrap();
            let again = QuantizedLinear::new(&transposed.t().unwrap(), Some(&bias), scheme).unwrap();
            assert_eq!(bits_of(&again.forward(&x).unwrap()), bits_of(&detour.forward(&x).unwrap()));
        }
    }
}

/// Beside the output there is what candle keeps for each tensor.
#[test]
fn a_contiguous_tensor_is_not_copied_and_another_once() {
    const BESIDE: usize = 1024;
    let rows = 64;
    for (size, dtype) in [(4, DType::F32), (2, DType::F16), (2, DType::BF16)] {
        let module = module(Int8Scheme::accurate());
        let x = tensor(&normal(rows * K, 3, 4.0), &[rows, K]).to_dtype(dtype).unwrap();
        let bytes = allocated(|| drop(module.forward(&x).unwrap()));
        let output = rows * N * size;
        assert!((output..output + BESIDE).contains(&bytes), "{bytes} for an output of {output} in {dtype:?}");
        let columns = x.t().unwrap().contiguous().unwrap().t().unwrap();
        let (bytes, copied) = (allocated(|| drop(module.forward(&columns).unwrap())), output + rows * K * size);
        assert!((copied..copied + BESIDE).contains(&bytes), "{bytes} for a copy and an output of {copied}");
    }
    let embedding = QuantizedEmbedding::new(&tensor(&normal(50 * K, 1, 0.1), &[50, K]), EmbeddingFormat::Int8).unwrap();
    let ids = Tensor::from_vec((0..rows as u32).map(|id| id % 50).collect(), rows, &Device::Cpu).unwrap();
    let (bytes, output) = (allocated(|| drop(embedding.forward(&ids).unwrap())), rows * K * 4);
    assert!((output..output + BESIDE).contains(&bytes), "{bytes} for an output of {output}");
}

#[test]
fn an_embedding_module_gives_its_tables_rows_for_every_type() {
    let values = normal(50 * K, 1, 0.1);
    let weight = tensor(&values, &[50, K]);
    let ids = [3i64, 49, 0, 3, 17, 20];
    for format in [EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2, EmbeddingFormat::Fp16] {
        let table = pack_embedding(&values, 50, K, format).unwrap();
        let expected = fbgemm::embedding(&table, &ids).unwrap();
        let embedding = QuantizedEmbedding::new(&weight, format).unwrap();
        let indices = Tensor::from_slice(&ids, (2, 3), &Device::Cpu).unwrap();
        for dtype in [DType::I64, DType::U32, DType::I32, DType::U8] {
            let indices = indices.to_dtype(dtype).unwrap();
            let rows = embedding.forward(&indices).unwrap();
            assert_eq!((rows.dims(), bits_of(&rows)), (&[2, 3, K][..], bits(&expected)), "{dtype:?}");
            let columns = indices.t().unwrap().contiguous().unwrap();
            assert_eq!(bits_of(&embedding.forward(&columns.t().unwrap()).unwrap()), bits(&expected));
        }
        let mut halves = vec![f16::ZERO; ids.len() * K];
        fbgemm::embedding_into(&table, &ids, &mut halves).unwrap();
        let rows = embedding.clone().with_dtype(DType::F16).unwrap().forward(&indices).unwrap();
        assert_eq!(rows.flatten_all().unwrap().to_vec1::<f16>().unwrap(), halves);
        let rows = embedding.clone().with_dtype(DType::BF16).unwrap().forward(&indices).unwrap();
        let rounded: Vec<bf16> = expected.iter().map(|&x| bf16::from_f32(x)).collect();
        assert_eq!(rows.flatten_all().unwrap().to_vec1::<bf16>().unwrap(), rounded);
        // Outputs in the type of the weight, and rows of its values.
        let half = candle_nn::Embedding::new(weight.to_dtype(DType::F16).unwrap(), K);
        let half = QuantizedEmbedding::from_embedding(&half, format).unwrap();
        assert_eq!(half.forward(&indices).unwrap().dtype(), DType::F16);
    }
    let exact = QuantizedEmbedding::new(&weight, EmbeddingFormat::Fp32).unwrap();
    let indices = Tensor::from_slice(&ids, 6, &Device::Cpu).unwrap();
    let candle = candle_nn::Embedding::new(weight, K).forward(&indices).unwrap();
    assert_eq!(bits_of(&exact.forward(&indices).unwrap()), bits_of(&candle));
}

#[test]
fn what_does_not_fit_is_an_error_that_says_so() {
    let module = module(Int8Scheme::accurate());
    let says = |x: candle_core::Result<Tensor>, expected: &str| assert_eq!(text(x.unwrap_err()), expected);
    let cpu = Device::Cpu;
    says(
        module.forward(&Tensor::zeros((2, K), DType::U32, &cpu).unwrap()),
        "the input has elements of type u32, expected f32, f16, bf16 or f64",
    );
    says(
        module.forward(&Tensor::zeros((2, 20), DType::F32, &cpu).unwrap()),
        "the input has shape [2, 20], expected [.., 40]",
    );
    says(module.forward(&Tensor::zeros((), DType::F32, &cpu).unwrap()), "the input has shape [], expected [.., 40]");
    let mut values = vec![0f32; 2 * K];
    values[K + 2] = f32::NAN;
    says(module.forward(&tensor(&values, &[2, K])), "input[42] is NaN, expected a finite number");
    let (weight, bias) = weight();
    let refused = |weight: &Tensor, bias: &Tensor| {
        QuantizedLinear::new(weight, Some(bias), Int8Scheme::accurate()).unwrap_err().to_string()
    };
    assert_eq!(refused(&bias, &bias), "the weight has shape [24], expected [out_features, in_features]");
    assert_eq!(refused(&weight, &bias.narrow(0, 0, 23).unwrap()), "bias has 23 elements, expected 24");
    assert_eq!(
        refused(&weight.to_dtype(DType::I64).unwrap(), &bias),
        "the weight has elements of type i64, expected f32, f16, bf16 or f64"
    );
    let embedding = QuantizedEmbedding::new(&weight, EmbeddingFormat::Int8).unwrap();
    says(
        embedding.forward(&Tensor::new(&[0u32, 3_000_000_000], &cpu).unwrap()),
        "indices[1] is 3000000000, expected a row of the table, which has 24",
    );
    says(
        embedding.forward(&Tensor::new(&[0i64, -1], &cpu).unwrap()),
        "indices[1] is -1, expected a row of the table, which has 24",
    );
    says(
        embedding.forward(&Tensor::new(&[0f32], &cpu).unwrap()),
        "the input has elements of type f32, expected u32, i64, i32 or u8",
    );
    assert!(matches!(embedding.with_dtype(DType::F64), Err(Error::WrongDType { given: DType::F64, .. })));
}

#[test]
fn a_backward_pass_is_an_error_and_not_a_gradient_that_is_missing() {
    let x = Var::from_tensor(&tensor(&normal(2 * K, 3, 4.0), &[2, K])).unwrap();
    let y = module(Int8Scheme::accurate()).forward(&x).unwrap();
    let error = y.sum_all().unwrap().backward().unwrap_err();
    assert!(error.to_string().contains("backward is not supported for fbgemm-linear"), "{error}");
}

#[test]
fn errors_go_both_ways_and_into_anyhow() {
    fn candle() -> candle_core::Result<()> {
        let (weight, _) = weight();
        quantized_linear(K, N, Int8Scheme::accurate(), VarBuilder::zeros(DType::F32, &Device::Cpu).pp("a.b"))?;
        QuantizedLinear::new(&(weight * f64::INFINITY)?, None, Int8Scheme::accurate())?;
        Ok(())
    }
    fn own() -> fbgemm_candle::Result<()> {
        candle()?; // from candle's
        Ok(fbgemm::quantize_weight(&[1.0], 1, 1).map(drop)?) // from the library's
    }
    fn any() -> anyhow::Result<()> {
        Ok(own()?)
    }
    assert!(candle().unwrap_err().to_string().starts_with("weight[0] is"), "{}", candle().unwrap_err());
    assert!(matches!(own(), Err(Error::Candle(_))));
    assert!(any().unwrap_err().downcast::<Error>().is_ok());
    let library = fbgemm::quantize_weight(&[f32::NAN], 1, 1).unwrap_err();
    let expected = text(&library);
    assert_eq!(text(candle_core::Error::from(Error::from(library))), expected);
    let library = fbgemm::quantize_weight(&[f32::NAN], 1, 1).unwrap_err();
    assert_eq!(text(candle_core::Error::wrap(library)), expected);
    let library = fbgemm::quantize_weight(&[f32::NAN], 1, 1).unwrap_err();
    assert_eq!(text(anyhow::Error::from(library)), expected);
    // A candle error that went through this crate's comes out as it was; of others all causes are in the text.
    let own = Error::from(candle_core::Error::CannotFindTensor { path: "x".to_string() });
    assert!(matches!(candle_core::Error::from(own), candle_core::Error::CannotFindTensor { .. }));
    let vb = VarBuilder::from_tensors(HashMap::new(), DType::F32, &Device::Cpu).pp("a.b");
    let error = quantized_linear(K, N, Int8Scheme::accurate(), vb).unwrap_err();
    assert_eq!(text(candle_core::Error::from(error)), "layer \"a.b\": cannot find tensor a.b.bias");
}

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("candle").join(name);
    empty_folder(folder).join("model.safetensors")
}

/// A checkpoint in floats, by candle itself: two linear layers, an embedding and a norm.
fn checkpoint(path: &Path) {
    let (weight, bias) = weight();
    let tensors = HashMap::from([
        ("first.weight".to_string(), weight.clone()),
        ("first.bias".to_string(), bias.clone()),
        ("second.weight".to_string(), (weight * 2.0).unwrap().to_dtype(DType::F16).unwrap()),
        ("words.weight".to_string(), tensor(&normal(50 * K, 7, 0.1), &[50, K])),
        ("norm.weight".to_string(), bias),
    ]);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn quantize(from: &Path, to: &Path, options: QuantizeOptions) {
    let options = CheckpointOptions::from(options).linear("first").linear("second").embedding("words");
    let file = ModelFile::open(from).unwrap();
    quantize_checkpoint(&file, &options, Some(to), &mut |_, _| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_checkpoint_in_floats_is_quantized_when_it_is_read() {
    let path = path("floats");
    checkpoint(&path);
    let candle =
        VarBuilder::from_buffered_safetensors(std::fs::read(&path).unwrap(), DType::F32, &Device::Cpu).unwrap();
    let own = var_builder(ModelFile::open(&path).unwrap(), DType::F32);
    let x = tensor(&normal(3 * K, 3, 4.0), &[3, K]);
    let ids = Tensor::new(&[7u32, 49, 0], &Device::Cpu).unwrap();
    for vb in [candle, own] {
        let first = quantized_linear(K, N, Int8Scheme::accurate(), vb.pp("first")).unwrap();
        assert_eq!(bits_of(&first.forward(&x).unwrap()), bits_of(&module(Int8Scheme::accurate()).forward(&x).unwrap()));
        let second = quantized_linear_no_bias(K, N, Int8Scheme::accurate(), vb.pp("second")).unwrap();
        assert_eq!(second.layer().bias(), None);
        let words = quantized_embedding(50, K, EmbeddingFormat::Int8, vb.pp("words")).unwrap();
        let table = pack_embedding(&normal(50 * K, 7, 0.1), 50, K, EmbeddingFormat::Int8).unwrap();
        assert_eq!(bits_of(&words.forward(&ids).unwrap()), bits(&fbgemm::embedding(&table, &[7, 49, 0]).unwrap()));
        assert_eq!(bits_of(&vb.get(N, "norm.weight").unwrap()), bits(&normal(N, 2, 1.0)));
        assert!(vb.get(N + 1, "norm.weight").is_err());
        let wrong = quantized_linear(K + 1, N, Int8Scheme::accurate(), vb.pp("first")).unwrap_err();
        assert!(wrong.chain().starts_with("layer \"first\": shape mismatch for first.weight"), "{}", wrong.chain());
        let missing = quantized_linear_b(K, N, true, Int8Scheme::accurate(), vb.pp("second")).unwrap_err();
        assert!(missing.chain().contains("second.bias"), "{}", missing.chain());
    }
}

#[test]
fn a_quantized_file_gives_its_layers_as_they_are() {
    let (floats, quantized) = (path("unquantized"), path("quantized"));
    checkpoint(&floats);
    let x = tensor(&normal(3 * K, 3, 4.0), &[3, K]);
    let ids = Tensor::new(&[7u32, 49, 0], &Device::Cpu).unwrap();
    // What the model's code asks for counts for layers in floats alone.
    let other = Int8Scheme { inputs: InputScheme::new().reduce_range(), ..Int8Scheme::pytorch() };
    for scheme in [LinearScheme::Int8(Int8Scheme::accurate()), Int8Scheme::portable().into(), LinearScheme::Fp16] {
        for format in [EmbeddingFormat::Int8, EmbeddingFormat::Int4, EmbeddingFormat::Int2] {
            quantize(&floats, &quantized, QuantizeOptions::new(scheme).embeddings(format));
            let file = ModelFile::open(&quantized).unwrap();
            let vb = var_builder(ModelFile::open(&quantized).unwrap(), DType::F32);
            for (name, bias) in [("first", true), ("second", false)] {
                let module = quantized_linear_b(K, N, bias, other, vb.pp(name)).unwrap();
                let expected = file.linear(name).unwrap().forward(&normal(3 * K, 3, 4.0)).unwrap();
                assert_eq!(bits_of(&module.forward(&x).unwrap()), bits(&expected), "{name} in {scheme:?}");
            }
            let words = quantized_embedding(50, K, EmbeddingFormat::Fp32, vb.pp("words")).unwrap();
            assert_eq!(words.table().format(), format);
            let expected = file.embedding("words").unwrap().forward(&[7, 49, 0]).unwrap();
            assert_eq!(bits_of(&words.forward(&ids).unwrap()), bits(&expected));
            let half = quantized_embedding(50, K, format, vb.to_dtype(DType::F16).pp("words")).unwrap();
            assert_eq!(half.forward(&ids).unwrap().dtype(), DType::F16);
            assert_eq!(bits_of(&vb.get(N, "norm.weight").unwrap()), bits(&normal(N, 2, 1.0)));
            assert!(quantized_linear(K, N + 1, other, vb.pp("first")).is_err());
            assert!(quantized_embedding(51, K, format, vb.pp("words")).is_err());
            assert!(quantized_linear(K, 50, other, vb.pp("words")).is_err());
        }
    }
    quantize(&floats, &quantized, QuantizeOptions::new(Int8Scheme::accurate()));
    let candle = std::fs::read(&quantized).unwrap();
    let candle = VarBuilder::from_buffered_safetensors(candle, DType::F32, &Device::Cpu).unwrap();
    let error = quantized_linear(K, N, Int8Scheme::accurate(), candle.pp("first")).unwrap_err();
    assert!(matches!(&error, Error::InLayer { source, .. } if matches!(**source, Error::NeedsVarBuilder)), "{error}");
}

/// The file's tensors can have any name: this package's own among them.
#[test]
fn a_file_that_plays_a_quantized_layer_is_an_error() {
    let path = path("hostile");
    let numbers = [105.0, 110.0, 116.0, 56.0, 32.0, 10.0, 1.0];
    let others = [PlainTensor { name: "x.fbgemm_quantized", shape: &[7], values: &numbers }];
    let layer = Linear::from(fbgemm::QuantizedLinear::new(&[0.5; 4], None, 2, 2, Int8Scheme::pytorch()).unwrap());
    save_modules(&vec![layer], &others, &path).unwrap();
    let vb = var_builder(ModelFile::open(&path).unwrap(), DType::F32);
    let error = quantized_linear_no_bias(2, 2, Int8Scheme::accurate(), vb.pp("x")).unwrap_err();
    assert!(error.chain().contains("layer \"x\""), "{}", error.chain());
    let x = tensor(&[1.0, 2.0], &[1, 2]);
    assert!(quantized_linear_no_bias(2, 2, Int8Scheme::accurate(), vb.pp("0")).unwrap().forward(&x).is_ok());
}
