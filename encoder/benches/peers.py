"""Texts a second of all-MiniLM-L6-v2 elsewhere, on the tokens of `fbgemm bench --encoder`, and each one's cosine to fp32.

    python3 peers.py export FOLDER WORK      needs torch, transformers, onnx: makes the fp32 model
    python3 peers.py quantize WORK           needs onnxruntime and torch: makes the int8 models
    python3 peers.py run WORK [NAME ...]     needs numpy and what a contender runs on

Prints lines that `fbgemm bench --encoder --peers FILE` reads: contender, threads, tokens, texts, wall and processor time of
a call in milliseconds.
"""
import pathlib
import sys
import time

LENGTHS = ["16", "64", "128", "mixed"]
BATCHES = [1, 8, 32]


def texts(length, batch):
    def ids(text, n):
        return [101] + [1000 + (text * 131 + i * 7919) % 20000 for i in range(1, n - 1)] + [102]
    return [ids(text, int(length) if length != "mixed" else 8 + text * 53 % 121) for text in range(batch)]


def padded(rows):
    import numpy as np
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = row
    return ids, np.array([[1] * len(row) + [0] * (ids.shape[1] - len(row)) for row in rows], dtype=np.int64)


def pool(states, mask):
    import numpy as np
    mask = mask[:, :, None].astype(np.float32)
    mean = (states * mask).sum(1) / mask.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def export(folder, work):
    import torch
    from transformers import AutoModel
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.ones(2, 8, dtype=torch.long)
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        Plain(), (ids, ids), work / "fp32.onnx", input_names=["input_ids", "attention_mask"], output_names=["states"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "states": axes}, opset_version=17, dynamo=False)


def quantize(work):
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    fused = optimizer.optimize_model(str(work / "fp32.onnx"), model_type="bert", num_heads=12, hidden_size=384)
    fused.save_model_to_file(str(work / "fp32-fused.onnx"))
    for name, source, per_channel, kind in [
        ("int8", "fp32", False, QuantType.QInt8),
        ("int8-channel", "fp32", True, QuantType.QInt8),
        ("int8-fused", "fp32-fused", False, QuantType.QInt8),
        ("int8-fused-channel", "fp32-fused", True, QuantType.QInt8),
    ]:
        quantize_dynamic(
            str(work / f"{source}.onnx"), str(work / f"{name}.onnx"), per_channel=per_channel, weight_type=kind,
            extra_options={"DefaultTensorType": TensorProto.FLOAT})


def onnx(work, name, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin would count as processor time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    session = onnxruntime.InferenceSession(str(work / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def openvino(work, threads):
    import openvino
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(str(work / "int8-channel.onnx")), "CPU", config)
    return lambda ids, mask: model({"input_ids": ids, "attention_mask": mask})[0]


def torch_model(work, quantized, threads):
    import torch
    from transformers import AutoModel
    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained((work / "folder.txt").read_text().strip()).eval()
    if quantized:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)

    def run(ids, mask):
        with torch.inference_mode():
            ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
            return model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    return run


CONTENDERS = {
    "onnx-fp32": lambda work, threads: onnx(work, "fp32-fused", threads),
    "onnx-int8": lambda work, threads: onnx(work, "int8", threads),
    "onnx-int8-channel": lambda work, threads: onnx(work, "int8-channel", threads),
    "onnx-int8-fused": lambda work, threads: onnx(work, "int8-fused", threads),
    "onnx-int8-fused-channel": lambda work, threads: onnx(work, "int8-fused-channel", threads),
    "openvino-int8": openvino,
    "torch-fp32": lambda work, threads: torch_model(work, False, threads),
    "torch-int8": lambda work, threads: torch_model(work, True, threads),
}


def measure(run, rows, sort):
    """The least wall and processor time of a call, with texts of like length together where they are sorted."""
    rows = sorted(rows, key=len) if sort else rows
    calls = [padded(rows[i:i + 8]) for i in range(0, len(rows), 8)] if sort else [padded(rows)]
    once = lambda: [run(*call) for call in calls]
    once()
    best = [1e9, 1e9]
    for _ in range(6):
        start, cpu, n = time.perf_counter(), time.process_time(), 0
        while n == 0 or time.perf_counter() - start < 0.06:
            once()
            n += 1
        best = [min(best[0], (time.perf_counter() - start) / n), min(best[1], (time.process_time() - cpu) / n)]
    return [1e3 * x for x in best]


def main(work, names):
    import numpy as np
    reference = [padded([row]) for row in texts("mixed", 32)]
    exact = onnx(work, "fp32", 1)
    exact = [pool(exact(*call), call[1])[0] for call in reference]
    for name in names or CONTENDERS:
        for threads in [1, 2]:
            run = CONTENDERS[name](work, threads)
            if threads == 1:
                vectors = [pool(run(*call), call[1])[0] for call in reference]
                print(name, "cosine", min(np.dot(a, b) for a, b in zip(vectors, exact)),
                      np.mean([np.dot(a, b) for a, b in zip(vectors, exact)]), flush=True)
            for length in LENGTHS + ["mixed-sorted"]:
                for batch in BATCHES:
                    rows = texts(length.removesuffix("-sorted"), batch)
                    if length == "mixed-sorted" and batch < 32:
                        continue
                    wall, cpu = measure(run, rows, length == "mixed-sorted")
                    print(name, threads, length, batch, f"wall_ms {wall:.3f} cpu_ms {cpu:.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        work = pathlib.Path(sys.argv[3])
        export(sys.argv[2], work)
        (work / "folder.txt").write_text(sys.argv[2])
    elif sys.argv[1] == "quantize":
        quantize(pathlib.Path(sys.argv[2]))
    else:
        main(pathlib.Path(sys.argv[2]), sys.argv[3:])
