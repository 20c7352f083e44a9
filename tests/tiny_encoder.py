"""Tiny encoders for tests: a BERT saved by sentence-transformers, and an exported one that is made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "brain", "pain", "the", "lung", "foot", "hurts")


def sentence_transformer(folder: Path, *, layers: int = 1, max_tokens: int = 16, pooling: str = "mean") -> Any:
    """A BERT of hidden size 32, random but always the same, as a `SentenceTransformer`; `folder` is to work in.

    Its weights are larger than training starts with, so that different questions get different vectors.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocab = {word: number for number, word in enumerate(WORDS)}
    BertTokenizerFast(vocab=vocab, model_max_length=max_tokens).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_tokens,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=max_tokens)
    return SentenceTransformer(modules=[transformer, Pooling(32, pooling)], device="cpu")


def exported(
    folder: Path, *, weights: Any = None, description: dict[str, Any] | None = None, output: str = "embedding"
) -> Path:
    """An exported encoder of dimension 4 that adds up its tokens' vectors, `weights` (tokens, 4), and no more.

    Its output is not normalised. Its tokens are `WORDS`, and one, `beyond`, that has no vector. `description`
    overrides keys of its `encoder.json`; a value of None leaves the key out.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        weights = np.random.default_rng(0).normal(size=(len(WORDS), 4))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["tokens"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["tokens", "column"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "middle"], [output], keepdims=0),
        ],
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", "d"])],
        [
            numpy_helper.from_array(np.asarray(weights, dtype=np.float32), "weights"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    vocab = {word: number for number, word in enumerate((*WORDS, "beyond"))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=20)  # what a file may say; an encoder pads nothing
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"format": 1, "name": "tiny", "dimension": 4, "max_tokens": 8} | (description or {})
    told = {key: value for key, value in described.items() if value is not None}
    (folder / "encoder.json").write_text(json.dumps(told), encoding="utf-8")
    return folder
