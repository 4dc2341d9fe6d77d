//! Other int8 libraries, as contenders: each behind a feature of the command, off by default.

use super::contender::Entry;

/// Those that this build has and this machine can run; of one that it can't, a line on stderr says what is missing.
pub fn entries() -> Vec<Entry> {
    let libraries: &[fn() -> Vec<Entry>] = &[
        #[cfg(feature = "rten")]
        rten::entries,
        #[cfg(feature = "ort")]
        onnx_runtime::entries,
    ];
    libraries.iter().flat_map(|entries| entries()).collect()
}

/// RTen's int8 GEMM, with RTen's own quantization of the inputs before it and a scaling of the sums after it.
#[cfg(feature = "rten")]
mod rten {
    use super::super::contender::{Contender, Entry, Layer};
    use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix, QuantParams};
    use rten_simd::SimdOp;
    use rten_tensor::NdTensorView;
    use rten_vecmath::{MinMax, Quantize};

    pub fn entries() -> Vec<Entry> {
        vec![Entry {
            name: "rten-gemm int8".into(),
            int8: true,
            packs: true,
            make: Box::new(|layer, rows, threads| Ok(Some(Box::new(Int8::new(layer, rows, threads)?)))),
        }]
    }

    struct Int8 {
        gemm: GemmExecutor<u8, i8, i32>,
        weight: Weight,
        scale: f32,
        zero_point: i32,
        bias: Vec<f32>,
        rows: usize,
        in_features: usize,
        /// Room for quantized inputs, and for the GEMM's sums.
        inputs: Vec<u8>,
        sums: Vec<i32>,
    }

    enum Weight {
        Packed(PackedBMatrix<i8>),
        /// `out_features` rows. RTen multiplies a single row of input by a weight that isn't packed: that is faster.
        Plain(Vec<i8>),
    }

    impl Int8 {
        fn new(layer: Layer, rows: usize, threads: usize) -> Result<Self, String> {
            check_pool(threads)?;
            let Layer { out_features, in_features, .. } = layer;
            let quantized =
                fbgemm::quantize_weight(layer.weight, out_features, in_features).map_err(|error| error.to_string())?;
            let gemm = GemmExecutor::new();
            let weight = if rows == 1 {
                Weight::Plain(quantized.data().to_vec())
            } else {
                let matrix = NdTensorView::from_data([out_features, in_features], quantized.data());
                Weight::Packed(gemm.prepack_b(matrix.transposed()))
            };
            Ok(Self {
                gemm,
                weight,
                scale: quantized.scale(),
                zero_point: quantized.zero_point(),
                bias: layer.bias.to_vec(),
                rows,
                in_features,
                inputs: Vec::with_capacity(rows * in_features),
                sums: Vec::with_capacity(rows * out_features),
            })
        }
    }

    /// RTen computes on the threads of the rayon pool that its caller is one of. To hand a layer to another pool, and to
    /// wait for it there, would be timed too, and can take longer than the layer.
    fn check_pool(threads: usize) -> Result<(), String> {
        if rayon::current_thread_index().is_some() && rayon::current_num_threads() == threads {
            return Ok(());
        }
        Err(format!(
            "rten-gemm has to be called from within a rayon pool of as many threads as it shall use, {threads}"
        ))
    }

    impl Contender for Int8 {
        fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
            let (rows, in_features, out_features) = (self.rows, self.in_features, self.bias.len());

            // As ONNX's DynamicQuantizeLinear.
            let (min, max) = MinMax::new(input).dispatch();
            let (min, max) = (min.min(0.0), max.max(0.0));
            let scale = if min < max { (max - min) / 255.0 } else { 1.0 };
            let zero_point = (-min / scale).round_ties_even() as u8;
            let room = &mut self.inputs.spare_capacity_mut()[..input.len()];
            let inputs: &[u8] = Quantize::new(input, room, 1.0 / scale, zero_point).dispatch();

            let a = GemmInputA::Unpacked(NdTensorView::from_data([rows, in_features], inputs));
            let b = match &self.weight {
                Weight::Packed(packed) => GemmInputB::Packed(packed),
                Weight::Plain(data) => {
                    GemmInputB::Unpacked(NdTensorView::from_data([out_features, in_features], &data[..]).transposed())
                }
            };
            // The weight's zero point is subtracted below: RTen takes it from the packed weight, where it is always 0.
            let zero_points = vec![zero_point; rows];
            let a_quant = Some(QuantParams { zero_point: &zero_points[..] });
            let options = GemmUninitOptions { a_quant, ..Default::default() };
            let room = &mut self.sums.spare_capacity_mut()[..output.len()];
            let sums: &[i32] = self.gemm.gemm_uninit(room, a, b, options).map_err(|error| error.to_string())?;

            let scale = scale * self.scale;
            for ((input, sums), output) in inputs
                .chunks_exact(in_features)
                .zip(sums.chunks_exact(out_features))
                .zip(output.chunks_exact_mut(out_features))
            {
                let input_sum: i32 = input.iter().map(|&q| i32::from(q)).sum();
                let offset = self.zero_point * (input_sum - in_features as i32 * i32::from(zero_point));
                for ((output, &sum), &bias) in output.iter_mut().zip(sums).zip(&self.bias) {
                    *output = (sum - offset) as f32 * scale + bias;
                }
            }
            Ok(())
        }
    }
}

/// ONNX Runtime, by a model of one operator.
#[cfg(feature = "ort")]
mod onnx_runtime {
    use super::super::contender::{Contender, Entry, Layer};
    use super::onnx;
    use crate::stdio::complain;
    use ort::AsPointer;
    use ort::environment::Environment;
    use ort::session::Session;
    use ort::value::{TensorRef, TensorRefMut};
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::OnceLock;

    pub fn entries() -> Vec<Entry> {
        // One for the process: ONNX Runtime has it so.
        static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
        let said = |why: &String| {
            complain!(
                "ONNX Runtime is left out: {why}. Have a python3 with the package onnxruntime on PATH, or name the \
                 library in ORT_DYLIB_PATH"
            );
        };
        match ENVIRONMENT.get_or_init(|| environment().inspect_err(said)) {
            Ok(environment) => vec![
                entry("onnxruntime int8", true, environment, onnx::dynamic_int8),
                entry("onnxruntime fp32", false, environment, |layer, rows| Ok(onnx::fp32(layer, rows))),
            ],
            Err(_) => Vec::new(),
        }
    }

    fn environment() -> Result<Environment, String> {
        let library = match std::env::var_os("ORT_DYLIB_PATH") {
            Some(path) if !path.is_empty() => PathBuf::from(path),
            _ => python_library()?,
        };
        let builder = ort::init_from(library).map_err(|error| error.to_string())?;
        builder.with_telemetry(false).build().map_err(|error| error.to_string())
    }

    /// The library in the package `onnxruntime` of the python3 on PATH.
    fn python_library() -> Result<PathBuf, String> {
        // Finds the package without the time to import it.
        const FIND: &str = "import importlib.util as u\n\
            s = u.find_spec('onnxruntime')\n\
            print(s.submodule_search_locations[0] if s else '', end='')";
        let found = Command::new("python3").args(["-c", FIND]).output();
        let found = found.map_err(|error| format!("python3 can't be run ({error})"))?;
        let package = String::from_utf8_lossy(&found.stdout);
        if !found.status.success() || package.is_empty() {
            return Err("the python3 on PATH has no package onnxruntime".into());
        }
        let folder = PathBuf::from(&*package).join("capi");
        let files = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        files
            .flatten()
            .find(|file| file.file_name().to_string_lossy().starts_with("libonnxruntime.so"))
            .map(|file| file.path())
            .ok_or_else(|| format!("{} has no libonnxruntime.so: the package is too old", folder.display()))
    }

    fn entry(
        name: &str,
        int8: bool,
        environment: &'static Environment,
        model: fn(Layer, usize) -> Result<Vec<u8>, String>,
    ) -> Entry {
        let make = move |layer: Layer, rows, threads| {
            let session = session(environment, &model(layer, rows)?, threads).map_err(|error| error.to_string())?;
            let Layer { out_features, in_features, .. } = layer;
            Ok(Some(Box::new(Model { session, rows, out_features, in_features }) as Box<dyn Contender>))
        };
        Entry { name: name.into(), int8, packs: true, make: Box::new(make) }
    }

    fn session(environment: &Environment, model: &[u8], threads: usize) -> ort::Result<Session> {
        Session::builder(environment)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            // Threads that spin would take time from the contenders that come after.
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .commit_from_memory(model)
    }

    struct Model {
        session: Session,
        rows: usize,
        out_features: usize,
        in_features: usize,
    }

    impl Model {
        /// Reads the input and writes the output in place; [`Session::run`] would make a new output.
        fn run(&mut self, input: &[f32], output: &mut [f32]) -> ort::Result<()> {
            let input = TensorRef::from_array_view(([self.rows, self.in_features], input))?;
            let output = TensorRefMut::from_array_view_mut(([self.rows, self.out_features], output))?;
            // SAFETY: `Run` reads one name and one value on either side, all of which outlive it here; it runs the
            // session on this thread alone, as `&mut self` has it to itself, keeps none of the pointers, and writes to
            // the output's elements, which `output` borrows mutably. `ort` checked both lengths against the shapes.
            // The status, which `result_from_status` takes over, is fresh from `Run`.
            unsafe {
                ort::Error::result_from_status((ort::api().Run)(
                    self.session.ptr().cast_mut(),
                    std::ptr::null(),
                    &onnx::INPUT.as_ptr(),
                    &input.ptr(),
                    1,
                    &onnx::OUTPUT.as_ptr(),
                    1,
                    &mut output.ptr().cast_mut(),
                ))
            }
        }
    }

    impl Contender for Model {
        fn run(&mut self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
            self.run(input, output).map_err(|error| error.to_string())
        }
    }
}

/// ONNX models of a linear layer, as bytes: protobuf, written by hand.
#[cfg(feature = "ort")]
mod onnx {
    use super::super::contender::Layer;
    use std::ffi::CStr;

    /// The models' input, rows × in_features floats.
    pub const INPUT: &CStr = c"input";
    /// The models' output, rows × out_features floats.
    pub const OUTPUT: &CStr = c"output";

    /// The layer in fp32.
    pub fn fp32(layer: Layer, rows: usize) -> Vec<u8> {
        let weight = floats("weight", &[layer.out_features, layer.in_features], layer.weight);
        let bias = floats("bias", &[layer.out_features], layer.bias);
        let transposed = Message::new().text(1, "transB").number(20, 2).number(3, 1);
        model(node("Gemm", "", &["weight", "bias"]).message(5, transposed), [weight, bias], layer, rows)
    }

    /// The layer with its weight in int8, quantized as FBGEMM does, and inputs that are quantized on the way to uint8.
    pub fn dynamic_int8(layer: Layer, rows: usize) -> Result<Vec<u8>, String> {
        let Layer { out_features, in_features, .. } = layer;
        let quantized =
            fbgemm::quantize_weight(layer.weight, out_features, in_features).map_err(|error| error.to_string())?;
        let mut columns = vec![0; quantized.data().len()];
        for (n, row) in quantized.data().chunks_exact(in_features).enumerate() {
            for (k, &value) in row.iter().enumerate() {
                columns[k * out_features + n] = value as u8;
            }
        }
        let weight = tensor("weight", INT8, &[in_features, out_features], &columns);
        let scale = floats("scale", &[], &[quantized.scale()]);
        let zero_point = tensor("zero_point", INT8, &[], &[quantized.zero_point() as i8 as u8]);
        let bias = floats("bias", &[out_features], layer.bias);
        let node = node("DynamicQuantizeMatMul", CONTRIBUTED, &["weight", "scale", "zero_point", "bias"]);
        Ok(model(node, [weight, scale, zero_point, bias], layer, rows))
    }

    /// The domain of ONNX Runtime's own operators.
    const CONTRIBUTED: &str = "com.microsoft";

    // Element types, of the enum TensorProto.DataType.
    const FLOAT: u64 = 1;
    const INT8: u64 = 3;

    /// A ModelProto of this node and these constants.
    fn model<const N: usize>(node: Message, constants: [Message; N], layer: Layer, rows: usize) -> Vec<u8> {
        let mut graph = Message::new().message(1, node).text(2, "layer");
        for constant in constants {
            graph = graph.message(5, constant);
        }
        let graph = graph
            .message(11, matrix(INPUT, [rows, layer.in_features]))
            .message(12, matrix(OUTPUT, [rows, layer.out_features]));
        Message::new()
            .number(1, 8) // the format's version
            .message(8, Message::new().text(1, "").number(2, 17)) // the operators' versions, by domain
            .message(8, Message::new().text(1, CONTRIBUTED).number(2, 1))
            .message(7, graph)
            .0
    }

    /// A NodeProto from the input and these constants to the output.
    fn node(operator: &str, domain: &str, constants: &[&str]) -> Message {
        let mut node = Message::new().bytes(1, INPUT.to_bytes());
        for constant in constants {
            node = node.text(1, constant);
        }
        node.bytes(2, OUTPUT.to_bytes()).text(4, operator).text(7, domain)
    }

    /// A ValueInfoProto.
    fn matrix(name: &CStr, shape: [usize; 2]) -> Message {
        let [rows, columns] = shape.map(|size| Message::new().number(1, size as u64));
        let shape = Message::new().message(1, rows).message(1, columns);
        let tensor = Message::new().number(1, FLOAT).message(2, shape);
        Message::new().bytes(1, name.to_bytes()).message(2, Message::new().message(1, tensor))
    }

    /// A TensorProto of floats.
    fn floats(name: &str, shape: &[usize], values: &[f32]) -> Message {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensor(name, FLOAT, shape, &data)
    }

    /// A TensorProto; one without dimensions is a scalar.
    fn tensor(name: &str, element: u64, shape: &[usize], data: &[u8]) -> Message {
        let mut tensor = Message::new();
        for &size in shape {
            tensor = tensor.number(1, size as u64);
        }
        tensor.number(2, element).text(8, name).bytes(9, data)
    }

    /// A protobuf message, as its bytes so far.
    struct Message(Vec<u8>);

    impl Message {
        fn new() -> Self {
            Self(Vec::new())
        }

        fn number(self, field: u64, value: u64) -> Self {
            self.varint(field << 3).varint(value)
        }

        fn bytes(self, field: u64, value: &[u8]) -> Self {
            let mut message = self.varint(field << 3 | 2).varint(value.len() as u64);
            message.0.extend_from_slice(value);
            message
        }

        fn text(self, field: u64, value: &str) -> Self {
            self.bytes(field, value.as_bytes())
        }

        fn message(self, field: u64, value: Self) -> Self {
            self.bytes(field, &value.0)
        }

        fn varint(mut self, mut value: u64) -> Self {
            while value > 0x7f {
                self.0.push(value as u8 | 0x80);
                value >>= 7;
            }
            self.0.push(value as u8);
            self
        }
    }
}
