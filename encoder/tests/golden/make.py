"""Makes the golden models and vectors beside this file with real PyTorch and transformers.

    python3 make.py [MINILM]     needs torch, transformers, sentence-transformers, safetensors

Models are tiny and randomly initialised, one folder for each architecture and head, as `save_pretrained` writes them;
`golden.json` in each has texts (or pairs), their token ids and what PyTorch gives in fp32. With MINILM, the folder of
the real all-MiniLM-L6-v2, its vectors go to minilm.json.
"""
import json
import pathlib
import shutil
import sys

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertModel,
    DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel, MPNetConfig,
    MPNetForSequenceClassification, MPNetModel,
    PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification, RobertaModel, XLMRobertaConfig,
    XLMRobertaForSequenceClassification, XLMRobertaModel,
)

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = [
    "A small library keeps its promises.",
    "a",
    "",
    "Numbers that change with the machine are not numbers, they are weather; Zürich, 東京, and 🦀 agree.",
    "the cat sat on the mat " * 8,
    "The quick brown fox jumps over the lazy dog",
]
PAIRS = [
    ["what is a fox", "The quick brown fox jumps over the lazy dog"],
    ["what is a fox", "numbers are not weather"],
    ["", "a"],
    ["weather", "the cat sat on the mat " * 12],
]
CORPUS = TEXTS + [text for pair in PAIRS for text in pair]
CORPUS += ["of in to and is it for on with as that this be by or from"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def word_piece(cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]", mask="[MASK]", pair=True):
    tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=[pad, unk, cls, sep, mask], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    if pair:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ids)
    else:  # MPNet's: two separators, one segment
        tokenizer.post_processor = processors.RobertaProcessing(ids[1], ids[0])
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=cls, sep_token=sep, pad_token=pad, unk_token=unk, mask_token=mask,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], unk_token="<unk>",
        show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def folder(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def randomize(model):
    """Weights large enough to tell layers apart; norms and biases that are not 1 and 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tokens(tokenizer, text, length):
    first, second = text if isinstance(text, list) else (text, None)
    return tokenizer(first, second, truncation=True, max_length=length, return_tensors="pt")


def save(path, entries):
    (path / "golden.json").write_text(json.dumps(entries, ensure_ascii=False, indent=None) + "\n")


def numbers(tensor):
    return [float(f"{x:.9g}") for x in tensor.double().flatten().tolist()]


def pooled(name, config, model, tokenizer, pooling):
    """A bare encoder, pooled as sentence-transformers does, as its folder says."""
    torch.manual_seed(len(name))
    path, length = folder(name), 64
    model = randomize(model(config))
    model.save_pretrained(path)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(path)
    (path / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({
        "word_embedding_dimension": config.hidden_size, "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_max_tokens": pooling == "max",
    }))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    reloaded, entries = AutoModel.from_pretrained(path).eval(), []
    for text in TEXTS:
        inputs = tokens(tokenizer, text, length)
        with torch.no_grad():
            states = reloaded(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).last_hidden_state[0]
        vector = {"cls": states[0], "mean": states.mean(0), "max": states.max(0).values}[pooling]
        entries.append({"text": text, "ids": inputs["input_ids"][0].tolist(), "vector": numbers(vector)})
    save(path, entries)


def with_dense():
    """What sentence-transformers itself saves and gives: pooling, a dense layer, normalizing."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
    torch.manual_seed(5)
    path, base = folder("bert-dense"), HERE / "bert"
    modules = [Transformer(str(base), max_seq_length=16), Pooling(32, "mean"), Dense(32, 24), Normalize()]
    randomize(modules[2])
    model = SentenceTransformer(modules=modules, device="cpu").eval()
    model.save_pretrained(str(path), create_model_card=False)
    vectors = model.encode(TEXTS)
    entries = []
    for text, vector in zip(TEXTS, vectors):
        ids = tokens(model.tokenizer, text, 16)["input_ids"][0].tolist()
        entries.append({"text": text, "ids": ids, "vector": numbers(torch.tensor(vector))})
    save(path, entries)


def prompted():
    """bert-dense with prompts and one of them the default: what `encode` gives by default and by name."""
    from sentence_transformers import SentenceTransformer
    path = HERE / "bert-dense"
    prompts = {"query": "the brown fox: ", "document": ""}
    model = SentenceTransformer(str(path), device="cpu", prompts=prompts, default_prompt_name="query").eval()
    cases = []
    for name in [None, "query", "document"]:
        for text in TEXTS:
            vector = model.encode([text], prompt_name=name)[0]
            cases.append({"text": text, "prompt_name": name, "vector": numbers(torch.tensor(vector))})
    config = {"prompts": prompts, "default_prompt_name": "query"}
    (path / "prompts.json").write_text(json.dumps({"config": config, "cases": cases}, ensure_ascii=False) + "\n")


def classified(name, config, model, tokenizer, labels):
    torch.manual_seed(len(name))
    path, length = folder(name), 48
    config.num_labels = labels
    model = randomize(model(config))
    model.save_pretrained(path)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(path).eval()
    entries = []
    for text in TEXTS + PAIRS:
        inputs = tokens(tokenizer, text, length)
        if config.model_type in ("distilbert", "mpnet", "roberta", "xlm-roberta"):
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = reloaded(**inputs).logits[0]
        entries.append({"text": text, "ids": inputs["input_ids"][0].tolist(), "vector": numbers(logits)})
    save(path, entries)


def configs(tokenizer):
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return {
        "bert": lambda **more: BertConfig(**SIZES, **size, max_position_embeddings=64, **more),
        "roberta": lambda **more: RobertaConfig(
            **SIZES, **size, max_position_embeddings=66, type_vocab_size=1, bos_token_id=0, eos_token_id=2, **more),
        "xlm-roberta": lambda **more: XLMRobertaConfig(
            **SIZES, **size, max_position_embeddings=66, type_vocab_size=1, bos_token_id=0, eos_token_id=2, **more),
        "distilbert": lambda **more: DistilBertConfig(
            **size, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, **more),
        "mpnet": lambda **more: MPNetConfig(**SIZES, **size, max_position_embeddings=66, **more),
    }


def minilm(path):
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(modules=modules_of(path), device="cpu").eval()
    entries = []
    for text, vector in zip(TEXTS, model.encode(TEXTS)):
        ids = tokens(model.tokenizer, text, 256)["input_ids"][0].tolist()
        entries.append({"text": text, "ids": ids, "vector": numbers(torch.tensor(vector))})
    (HERE / "minilm.json").write_text(json.dumps(entries, ensure_ascii=False) + "\n")


def modules_of(path):
    from sentence_transformers.models import Normalize, Pooling, Transformer
    return [Transformer(path, max_seq_length=256), Pooling(384, "mean"), Normalize()]


if __name__ == "__main__":
    pieces, mpnet_pieces = word_piece(), word_piece("<s>", "</s>", "<pad>", "[UNK]", "<mask>", pair=False)
    bytes_, grams = byte_pairs(), unigram()
    pooled("bert", configs(pieces)["bert"](), BertModel, pieces, "mean")
    with_dense()
    prompted()
    pooled("bert-tanh", configs(pieces)["bert"](hidden_act="gelu_new"), BertModel, pieces, "cls")
    pooled("roberta", configs(bytes_)["roberta"](), RobertaModel, bytes_, "cls")
    pooled("xlm-roberta", configs(grams)["xlm-roberta"](), XLMRobertaModel, grams, "mean")
    pooled("distilbert", configs(pieces)["distilbert"](), DistilBertModel, pieces, "max")
    pooled("mpnet", configs(mpnet_pieces)["mpnet"](), MPNetModel, mpnet_pieces, "mean")
    classified("bert-labels", configs(pieces)["bert"](), BertForSequenceClassification, pieces, 3)
    classified("roberta-labels", configs(bytes_)["roberta"](), RobertaForSequenceClassification, bytes_, 2)
    classified("xlm-roberta-reranker", configs(grams)["xlm-roberta"](), XLMRobertaForSequenceClassification, grams, 1)
    classified("distilbert-labels", configs(pieces)["distilbert"](), DistilBertForSequenceClassification, pieces, 2)
    classified("mpnet-labels", configs(mpnet_pieces)["mpnet"](), MPNetForSequenceClassification, mpnet_pieces, 2)
    if len(sys.argv) > 1:
        minilm(sys.argv[1])
