"""Make what three public speech models give in their original form, for the tests of recurrent layers.

    python make_speech.py PACKAGES WORDS        needs torch 2.14, numpy, safetensors

PACKAGES is a folder with the unpacked wheels of silero-vad 6.2.3, g2p-en 2.1.0, resemblyzer 0.1.4 and pyannote.audio 3.3.2,
whose sample is 30 seconds of a conversation; WORDS a text. Writes to speech/:

    vad.safetensors      silero-vad: the probability of speech of each 512 samples of the conversation, by the weights of
                         its safetensors file (its .jit has others) in PyTorch's layers, as its tinygrad_model.py says
    g2p.tsv              g2p-en: the text's 501 commonest words and the numbers of their phonemes, by its numpy code
    voices.safetensors   resemblyzer: vectors of the conversation's pieces of 160 frames, each 240 after the one before
"""
import collections
import re
import sys
import wave
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
PACKAGES, WORDS = Path(sys.argv[1]), Path(sys.argv[2])
OUT = Path(__file__).resolve().parent / "speech"


def samples():
    with wave.open(str(PACKAGES / "pyannote/audio/sample/sample.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def vad(audio):
    weights = load_file(PACKAGES / "silero_vad/data/silero_vad_16k.safetensors")
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.split(".")[1]: value for name, value in weights.items() if name.startswith("lstm_cell")})
    conv1d, found, state = torch.nn.functional.conv1d, [], None
    padded = torch.nn.functional.pad(torch.from_numpy(audio[: len(audio) // 512 * 512]), (64, 0))
    with torch.no_grad():
        for start in range(0, len(padded) - 64, 512):
            x = torch.nn.functional.pad(padded[None, start : start + 576], (0, 64), "reflect")[:, None]
            x = conv1d(x, weights["stft_conv.weight"], stride=128)
            x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
            for i, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
                x = conv1d(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride, padding=1).relu()
            state = cell(x.squeeze(-1), state)
            x = conv1d(state[0].relu()[..., None], weights["final_conv.weight"], weights["final_conv.bias"])
            found.append(x.sigmoid().flatten()[0])
    return torch.stack(found)


def g2p():
    """g2p_en.G2p.predict without its dictionary, which needs nltk's data."""
    source = (PACKAGES / "g2p_en/g2p.py").read_text()
    names = {}
    body = source[source.index("    def sigmoid(") : source.index("    def __call__")]
    exec("import numpy as np\nclass Model:\n" + body, names)
    model = names["Model"]()
    for name, value in np.load(PACKAGES / "g2p_en/checkpoint20.npz").items():
        setattr(model, name, value)
    graphemes = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
    model.g2idx = {g: i for i, g in enumerate(graphemes)}
    model.idx2p = {i: str(i) for i in range(74)}
    counts = collections.Counter(re.findall(r"(?<![\w'])[a-z]{3,}(?![\w'])", WORDS.read_text()))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:501]
    return [(word, model.predict(word)) for word in words]


def mel_filters():
    """Of 40 channels up to 8 kHz over 201 bins, as librosa's: Slaney's scale, areas of 1."""
    to_hz = lambda mel: np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    edges = to_hz(np.linspace(0, 15 + np.log(8) / (np.log(6.4) / 27), 42))
    bins = np.arange(201) * 40.0
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def mels(audio):
    padded = np.pad(audio.astype(np.float64), 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[at : at + 400] * window for at in range(0, len(audio) + 1, 160)])
    return (np.abs(np.fft.rfft(frames)) ** 2 @ mel_filters().T).astype(np.float32)


def voices(audio):
    state = torch.load(PACKAGES / "resemblyzer/pretrained.pt", weights_only=False, map_location="cpu")["model_state"]
    model = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(40, 256, 3, batch_first=True), "linear": torch.nn.Linear(256, 256)})
    model.load_state_dict({name: value for name, value in state.items() if "similarity" not in name})
    audio = audio * np.float32(10 ** ((-30 - 10 * np.log10(np.mean(audio**2))) / 20))  # to -30 dBFS, as it asks
    frames = mels(audio)
    pieces = torch.from_numpy(np.stack([frames[at : at + 160] for at in range(0, len(frames) - 159, 240)]))
    with torch.no_grad():
        _, (hidden, _) = model["lstm"](pieces)
        raw = torch.relu(model["linear"](hidden[-1]))
        return raw / raw.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    audio = samples()
    save_file({"probabilities": vad(audio)}, OUT / "vad.safetensors")
    save_file({"vectors": voices(audio)}, OUT / "voices.safetensors")
    lines = [f"{word}\t{' '.join(phonemes)}\n" for word, phonemes in g2p()]
    (OUT / "g2p.tsv").write_text("".join(lines))
