"""Write the weights of two public speech models as safetensors, by the standard library alone.

    python3 speech.py g2p IN.npz OUT.safetensors        python3 speech.py voices IN.pt OUT.safetensors

An .npz is a zip of plain arrays; the .pt is of the kind that torch.save wrote before 1.6: pickles, of which only tensors'
parts are built here, then the numbers. Recurrent weights get PyTorch's names.
"""
import collections
import json
import pickle
import struct
import sys
import zipfile

OF_G2P = {f"{short}_{of}_{part}": f"{full}.{word}_{part}" for short, full in (("enc", "encoder"), ("dec", "decoder"))
          for of, word in (("w", "weight"), ("b", "bias")) for part in ("ih", "hh")}
OF_G2P |= {"enc_emb": "graphemes.weight", "dec_emb": "phonemes.weight", "fc_w": "head.weight", "fc_b": "head.bias"}


def g2p(path):
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            data = file.read(name)
            length = int.from_bytes(data[8:10], "little")
            header = eval(data[10 : 10 + length].decode(), {"__builtins__": {}}, {"True": True, "False": False})
            assert data[:8] == b"\x93NUMPY\x01\0" and header["descr"] == "<f4" and not header["fortran_order"], name
            yield OF_G2P[name.removesuffix(".npy")], header["shape"], data[10 + length :]


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: (storage, offset, shape)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch", "FloatStorage"):
            return "f32"
        return (module, name)  # of no use here

    def persistent_load(self, saved):
        kind, dtype, key, _, size, _ = saved
        return key


def voices(path):
    with open(path, "rb") as file:
        for _ in range(3):  # a magic number, a version, sizes of C's types
            pickle.load(file)
        state = Unpickler(file).load()["model_state"]
        storages = {}
        for key in pickle.load(file):
            size = struct.unpack("<q", file.read(8))[0]
            storages[key] = file.read(4 * size)
    for name, (key, offset, shape) in state.items():
        size = 1
        for each in shape:
            size *= each
        yield name, shape, storages[key][4 * offset :][: 4 * size]


def write(tensors, path):
    header, at = {}, 0
    for name, shape, data in tensors:
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors:
            file.write(data)


if __name__ == "__main__":
    write(list({"g2p": g2p, "voices": voices}[sys.argv[1]](sys.argv[2])), sys.argv[3])
