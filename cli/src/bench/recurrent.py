"""Times PyTorch's and ONNX Runtime's recurrent layers: KIND REPETITIONS BUDGET HIDDEN,BATCH,STEPS...

KIND is lstm or gru; BUDGET the seconds that one layer's samples of one case may take. Prints tab-separated lines: the
layer, "quantized" or "fp32", the case's number, and the lower quartile, the median and the upper quartile of the seconds
for a sequence. One thread.
"""

import sys
import time
import warnings

import torch

warnings.simplefilter("ignore")
kind, repetitions, budget, *cases = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(1)
torch.backends.quantized.engine = "fbgemm"
cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
version = torch.__version__.split("+")[0]


def measure(name, what, case, run):
    run()
    start = time.perf_counter()
    run()
    least = time.perf_counter() - start
    calls = max(1, round(2e-4 / least))
    count = int(min(max(3, float(budget) / max(least, 2e-4)), max(3, int(repetitions))))
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        samples.append((time.perf_counter() - start) / calls)
    samples.sort()
    print(name, what, case, *(samples[round((count - 1) * share)] for share in (0.25, 0.5, 0.75)), sep="\t")


def quantized(weight):
    """Rows of outputs in int8, one scale, as ONNX Runtime's own quantizer makes them."""
    scale = max(weight.abs().max().item() / 127, 1e-12)
    return torch.round(weight / scale).clamp(-127, 127).to(torch.int8), scale


def onnx_session(layer, hidden):
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    order = [0, 3, 1, 2]  # i, o, f, c, where PyTorch has i, f, g, o
    turn = lambda tensor: torch.cat([tensor.chunk(4)[i] for i in order]).detach()
    w, w_scale = quantized(turn(layer.weight_ih_l0))
    r, r_scale = quantized(turn(layer.weight_hh_l0))
    bias = torch.cat([turn(layer.bias_ih_l0), turn(layer.bias_hh_l0)])
    constants = {
        "W": w.T.contiguous().numpy()[None], "R": r.T.contiguous().numpy()[None], "B": bias.numpy()[None],
        "W_scale": np.array([w_scale], np.float32), "W_zero": np.array([0], np.int8),
        "R_scale": np.array([r_scale], np.float32), "R_zero": np.array([0], np.int8),
    }
    inputs = ["X", "W", "R", "B", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    node = helper.make_node("DynamicQuantizeLSTM", inputs, ["Y", "Y_h", "Y_c"], domain="com.microsoft", hidden_size=hidden)
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [node], "lstm", [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["steps", "batch", hidden])],
        [value("Y"), value("Y_h"), value("Y_c")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


left_out = None
with torch.no_grad():
    for number, case in enumerate(cases):
        hidden, batch, steps = map(int, case.split(","))
        layer, x = cls(hidden, hidden), torch.randn(steps, batch, hidden)
        module = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {cls}, dtype=torch.qint8)[0]
        measure(f"PyTorch {version} int8", "quantized", number, lambda: module(x))
        measure(f"PyTorch {version}", "fp32", number, lambda: layer(x))
        if kind == "lstm" and left_out is None:
            try:
                import onnxruntime

                session = onnx_session(layer, hidden)
                array = x.numpy()
                expected = layer(x)[0].numpy()
                found = session.run(["Y"], {"X": array})[0][:, 0]
                if abs(found - expected).max() > 0.25:
                    raise ValueError(f"it is {abs(found - expected).max():.2f} from PyTorch's")
                name = f"ONNX Runtime {onnxruntime.__version__} int8"
                measure(name, "quantized", number, lambda: session.run(["Y"], {"X": array}))
            except Exception as e:
                left_out = f"ONNX Runtime's DynamicQuantizeLSTM: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
if left_out is not None:
    print("left out", left_out, sep="\t")
