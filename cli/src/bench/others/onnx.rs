//! ONNX models of a linear layer, as bytes: protobuf, written by hand.

use crate::bench::contender::Layer;
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
