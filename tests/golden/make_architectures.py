"""Make architectures.tsv: names and shapes of public models' 2-D tensors, what each is, and what config.json says.

    python make_architectures.py        needs torch 2.14, transformers 5.23, timm 1.0; no weights, about 3 minutes

Every model of transformers that can be built from its default config is built on the meta device (in the class that
it is pretrained in, else another with a head, else the bare model), its names are turned into those of its checkpoints,
and each 2-D parameter's kind is taken from the module that owns it. A few models of timm and of torch itself follow,
whose checkpoints have no config.json.

One block a model. Its first line is `@`, the model's name, its class, and the config's integers that speak of tables
(keys with one of the words in KEYS; of nested configs, too), as JSON, or `-` where there is none. A line for each
tensor follows: name, rows, columns, the length of its bias or `-`, and its kind:

    l  a linear layer, [out_features, in_features]
    e  an embedding: a row for each index
    t  a linear layer that is stored transposed, [in_features, out_features]
    o  no `weight` of a layer at all: the tensor has another name (position tables, biases)

A recurrent layer's `weight_ih_l0`, `weight_hh_l0` and so on are linear layers, too.

So that the table stays small, a model has one line for all tensors whose kinds and biases are of the same sort and
whose names, numbers aside, end in the same three parts (in the same two, where there is a bias); and a model that would
have the same names and kinds as an earlier one is left out, but for its name on the line `=` of that one.
"""
import inspect
import json
import os
import re
import signal
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import timm
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.pytorch_utils import Conv1D

OUT = Path(__file__).resolve().parent / "architectures.tsv"
KEYS = ("vocab", "queries", "position", "ctx", "buckets", "codebook")
FIRST = ("PRETRAINING", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "SPEECH_SEQ_2_SEQ", "CTC")
CLASSIFIERS = ("bert", "gpt2", "llama", "t5", "xlnet", "deberta-v2")
TIMM = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224",
    "convnext_tiny", "mixer_b16_224", "resnet18", "cait_xxs24_224", "coat_tiny", "pvt_v2_b0", "eva02_tiny_patch14_224",
    "vit_base_patch16_siglip_224", "naflexvit_base_patch16_gap", "xcit_nano_12_p16_224", "efficientnet_b0",
)
SECONDS = 60


class Expired(Exception):
    pass


def expire(*_):
    raise Expired


def classes():
    """For each model type of transformers, its classes, the likeliest first."""
    names = [f"MODEL_FOR_{head}_MAPPING_NAMES" for head in FIRST]
    heads = (name for name in sorted(dir(modeling_auto)) if re.fullmatch("MODEL_FOR_.*_NAMES", name))
    names += [name for name in heads if name not in names] + ["MODEL_MAPPING_NAMES"]
    mappings = [getattr(modeling_auto, name) for name in names]
    for kind in sorted(configuration_auto.CONFIG_MAPPING_NAMES):
        found = [mapping[kind] for mapping in mappings if kind in mapping]
        yield kind, [name for each in found for name in ([each] if isinstance(each, str) else each)]


def build(kind, names):
    """The first of the classes that can be built from the default config, and that config."""
    config, why = configuration_auto.CONFIG_MAPPING[kind](), "it has no class"
    for name in names:
        try:
            with torch.device("meta"):
                return getattr(transformers, name)(config), config
        except Expired:
            raise
        except Exception as e:  # what a default config lacks shows in any way
            why = f"{name}: {type(e).__name__} {str(e).splitlines()[0] if str(e) else ''}"
    raise ValueError(why)


def is_recurrent(full):
    return re.search(r"(^|\.)weight_(ih|hh)(_l\d+(_reverse)?)?$", full) is not None


def kind_of(module, full):
    """A tensor's kind by the module that owns it under this name."""
    if is_recurrent(full) and isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)):
        return "l"
    if full.rpartition(".")[2] != "weight":
        return "o"
    if isinstance(module, Conv1D):
        return "t"
    if isinstance(module, torch.nn.Linear):
        return "l"
    if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
        return "e"
    forward = inspect.getsource(type(module).forward)
    if "self.weight" in forward and "embedding(" in forward:
        return "e"
    if "self.weight" in forward and "linear(" in forward:
        return "l"
    raise ValueError(f"what is {full} of {type(module).__name__}?")


def tensors(model):
    """Name, shape and kind of a model's parameters, by the names that its checkpoints have."""
    modules = dict(model.named_modules(remove_duplicate=False))
    state, kinds = {}, {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        # One of its own for each name: a head and the embedding that it shares its weight with are of two kinds.
        state[full] = torch.empty(parameter.shape, device="meta")
        if parameter.dim() == 2:
            kinds[id(state[full])] = kind_of(modules[full.rpartition(".")[0]], full)
    kept = list(state.values())
    if isinstance(model, transformers.PreTrainedModel):
        state = revert_weight_conversion(model, dict(state))
    for full, tensor in state.items():
        # What a conversion splits or joins (experts, query with key and value) is of linear layers.
        kind = kinds.get(id(tensor), "t" if turned(full) else "l")
        yield full, list(tensor.shape), kind if full.rpartition(".")[2] == "weight" or is_recurrent(full) else "o"
    del kept


def turned(full):
    """Whether a conversion stores this one transposed."""
    return re.search(r"\.mlp\.gate\.weight$", full) is not None


def lines(model):
    shapes = {full: (shape, kind) for full, shape, kind in tensors(model)}
    seen, found = set(), []
    for full, (shape, kind) in shapes.items():
        if len(shape) != 2:
            continue
        bias = shapes.get(re.sub("weight$", "bias", full), ([], ""))[0] if full.endswith(".weight") else []
        bias = bias[0] if len(bias) == 1 else None
        sort = "-" if bias is None else "both" if shape == [bias, bias] else [bias == size for size in shape]
        plain = re.sub(r"(?<![^._])\d+(?![^._])", "0", full)
        words = [word for word in plain.split(".") if word != "0"]
        depth = 1 if kind == "o" else 3 if bias is None else 2
        key = (tuple(words[-depth:]), kind, str(sort))
        if key not in seen:
            seen.add(key)
            found.append((plain, *shape, "-" if bias is None else bias, kind))
    return found


def facts(config):
    """The integers of a config, nested ones too, that speak of tables."""
    found = {}

    def walk(value):
        for key, value in value.items():
            if isinstance(value, dict):
                walk(value)
            elif type(value) is int and any(word in str(key) for word in KEYS) and not key.endswith("_id"):
                found.setdefault(key, [])
                found[key] += [value] if value not in found[key] else []

    walk(config.to_dict())
    return {key: values[0] if len(values) == 1 else values for key, values in sorted(found.items())}


class Torch(torch.nn.Module):
    """What torch itself has beside linear layers and embeddings."""

    def __init__(self):
        super().__init__()
        self.transformer = torch.nn.Transformer(16, 2, 1, 1, 32)
        self.lstm, self.gru = torch.nn.LSTM(16, 8), torch.nn.GRUCell(16, 8)
        self.emb_l = torch.nn.ModuleList([torch.nn.EmbeddingBag(100, 16)])  # as DLRM calls them
        self.norm = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(16, 8))


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, expire)
    jobs = [(kind, lambda kind=kind, names=names: build(kind, names)) for kind, names in classes()]
    for kind, names in classes():
        if kind in CLASSIFIERS:
            head = [name for name in names if name.endswith("ForSequenceClassification")]
            jobs.append((f"{kind}-classifier", lambda kind=kind, head=head: build(kind, head)))
    jobs += [(f"timm-{name}", lambda name=name: (timm.create_model(name), None)) for name in TIMM]
    jobs.append(("torch", lambda: (Torch(), None)))

    blocks, failed = {}, []
    for name, job in jobs:
        signal.alarm(SECONDS)
        try:
            with torch.device("meta"):
                model, config = job()
            found = lines(model)
        except Exception as e:
            failed.append(f"{name}: {type(e).__name__} {e}")
            continue
        finally:
            signal.alarm(0)
        if found:
            same = tuple((plain, kind, bias == "-") for plain, _, _, bias, kind in found)
            about = "-" if config is None else json.dumps(facts(config), separators=(",", ":"))
            blocks.setdefault(same, []).append((name, type(model).__name__, about, found))
    text = [f"# By make_architectures.py: transformers {transformers.__version__}, timm {timm.__version__}"]
    for (name, kind, about, found), *others in blocks.values():
        text.append(f"@\t{name}\t{kind}\t{about}")
        text += ["=\t" + " ".join(other[0] for other in others)] if others else []
        text += ["\t".join(map(str, line)) for line in found]
    OUT.write_text("\n".join(text) + "\n")
    print("\n".join(failed), file=sys.stderr)
    print(f"{len(blocks)} architectures, {sum(map(len, blocks.values()))} models; {len(failed)} could not be built")


if __name__ == "__main__":
    main()
