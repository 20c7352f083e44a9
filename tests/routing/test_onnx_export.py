"""Exporting an encoder, on a BERT of two layers."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo.errors import EncoderError
from hlo.routing import onnx_export
from hlo.routing.onnx_encoder import OnnxEncoder
from hlo.routing.onnx_export import ExportReport, check_packages, export
from tests.tiny_encoder import WORDS, sentence_transformer

MAX_TOKENS = 24
QUESTIONS = ("", "heart", "heart brain pain", "the lung hurts the foot hurts", "unheard-of", "foot " * 100)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model that is exported."""
    return sentence_transformer(tmp_path_factory.mktemp("bert"), layers=2, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def exact(original: Any, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """It, exported in float32."""
    out = tmp_path_factory.mktemp("exact") / "encoder"
    return export(original, out, quantize=False, samples=QUESTIONS, base="clinic/tiny")


@pytest.fixture(scope="module")
def small(original: Any, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """It, exported in int8 after it was used."""
    original.encode(["heart " * 100, "brain"])  # leaves truncation and padding in its tokenizer
    return export(original, tmp_path_factory.mktemp("small") / "encoder", samples=QUESTIONS, name="tiny-8")


@pytest.fixture(scope="module")
def run(exact: ExportReport) -> Callable[[Any, Any], Any]:
    """The float32 graph: token ids and mask to vectors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exact.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]


def torch_vectors(model: Any, ids: Any, mask: Any) -> Any:
    """What the model itself makes of token ids and mask."""
    import torch

    with torch.no_grad():
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return torch.nn.functional.normalize(model(features)["sentence_embedding"], dim=1).numpy()


@settings(max_examples=60)
@given(st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_the_graph_computes_what_torch_does(
    original: Any, run: Callable[[Any, Any], Any], lengths: list[int], seed: int
) -> None:
    """For any number of questions, of any lengths up to the longest, padded to the longest, the graph is torch's."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(0, len(WORDS), size=mask.shape) * mask
    np.testing.assert_allclose(run(ids, mask), torch_vectors(original, ids, mask), atol=1e-4)


def test_what_stands_in_padding_does_not_count(run: Callable[[Any, Any], Any]) -> None:
    """A token that the mask hides changes nothing."""
    mask = np.array([[1, 1, 1, 0, 0]])
    one, other = np.array([[2, 5, 3, 0, 0]]), np.array([[2, 5, 3, 9, 11]])
    np.testing.assert_allclose(run(one, mask), run(other, mask), atol=1e-6)
    assert not np.allclose(run(one, mask), run(other, np.ones_like(mask)), atol=1e-3)


def test_the_encoder_gives_the_originals_vectors(original: Any, exact: ExportReport) -> None:
    """Through its own tokenizer, an exported encoder gives the vectors that sentence-transformers gives."""
    found = OnnxEncoder.load(exact.folder).encode(QUESTIONS)
    np.testing.assert_allclose(found, original.encode(list(QUESTIONS), normalize_embeddings=True), atol=1e-4)


def test_int8_is_near(original: Any, small: ExportReport, exact: ExportReport) -> None:
    """In int8 the vectors are near the original's, are not the same, and the file is smaller."""
    found = OnnxEncoder.load(small.folder).encode(QUESTIONS)
    cosines = (found * original.encode(list(QUESTIONS), normalize_embeddings=True)).sum(axis=1)
    assert 0.98 < cosines.min() < 0.99999
    assert small.size < exact.size


def test_the_recipe_rounds_weights_for_sums_of_16_bits(original: Any, small: ExportReport, tmp_path: Path) -> None:
    """Rounded anew, an int8 encoder has no neighbouring weights that overflow, and is as near to the original."""
    import onnx

    from adapters.recipe.encoder.narrow import MOST, narrow

    folder = tmp_path / "narrow"
    shutil.copytree(small.folder, folder)

    def largest() -> int:
        graph = onnx.load(folder / "model.onnx").graph
        weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        matrices = [weights[node.input[1]].astype(int) for node in graph.node if node.op_type == "MatMulInteger"]
        sums = [np.where(one[0::2] * one[1::2] > 0, np.abs(one[0::2] + one[1::2]), 0) for one in matrices]
        return max(int(one.max()) for one in sums)

    assert largest() > MOST
    narrow(folder, QUESTIONS)
    assert largest() <= MOST
    encoder = OnnxEncoder.load(folder)
    assert encoder.description.sum_bits == 16
    cosines = (encoder.encode(QUESTIONS) * original.encode(list(QUESTIONS), normalize_embeddings=True)).sum(axis=1)
    assert 0.98 < cosines.min() < 0.99999


def test_int8_keeps_rows_of_large_values_apart(original: Any) -> None:
    """A feed-forward layer is exported with its rows brought to one size; no such change is made for float32."""
    from hlo.routing import onnx_graph

    def scaled(graph: Any) -> list[str]:
        return [name for name, module in graph.named_modules() if isinstance(module, onnx_graph.RowScaled)]

    graph = onnx_graph.build(original[0].auto_model, "mean", scale_rows=True)
    assert len(scaled(graph)) == 4
    assert all("attention" not in name for name in scaled(graph))
    assert scaled(onnx_graph.build(original[0].auto_model, "mean", scale_rows=False)) == []
    assert scaled(original) == []


def test_the_report_says_what_was_measured(original: Any, exact: ExportReport, small: ExportReport) -> None:
    """A report's figures are those of the files that were written."""
    for report, quantization in ((exact, "none"), (small, "int8")):
        encoder = OnnxEncoder.load(report.folder)
        wanted = original.encode(list(QUESTIONS), normalize_embeddings=True)
        cosines = (encoder.encode(QUESTIONS) * wanted).sum(axis=1)
        assert report.fingerprint == encoder.fingerprint
        assert report.size == (report.folder / "model.onnx").stat().st_size
        assert report.description == encoder.description
        assert report.description.quantization == quantization
        assert (report.description.dimension, report.description.max_tokens) == (32, MAX_TOKENS)
        assert report.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
        assert report.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
        assert report.samples == len(QUESTIONS)
        assert 0 < report.difference < 1e-4
    assert (exact.description.name, exact.description.base) == ("tiny-onnx", "clinic/tiny")
    assert small.description.name == "tiny-8"


def test_an_export_is_the_same_again_and_of_a_folder_too(original: Any, small: ExportReport, tmp_path: Path) -> None:
    """The same model, saved and exported to an empty folder elsewhere, gives the same encoder."""
    original.save(str(tmp_path / "clinic"))
    (tmp_path / "out").mkdir()
    again = export(str(tmp_path / "clinic"), tmp_path / "out", samples=QUESTIONS, name="tiny-8")
    assert again.description.base == "clinic"
    tokenizer = json.loads((small.folder / "tokenizer.json").read_bytes())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    for name in ("model.onnx", "tokenizer.json"):
        assert (again.folder / name).read_bytes() == (small.folder / name).read_bytes()


def test_nothing_tells_where_it_was_made(small: ExportReport) -> None:
    """No file holds a path of the machine that it was exported on."""
    for path in small.folder.iterdir():
        content = path.read_bytes()
        assert b".py" not in content, path
        assert str(Path.home()).encode() + b"/" not in content, path


def test_cls_pooling(tmp_path: Path) -> None:
    """A model that takes its first token's vector is exported as one."""
    model = sentence_transformer(tmp_path / "bert", pooling="cls")
    report = export(model, tmp_path / "out", quantize=False, samples=QUESTIONS)
    found = OnnxEncoder.load(report.folder).encode(QUESTIONS)
    np.testing.assert_allclose(found, model.encode(list(QUESTIONS), normalize_embeddings=True), atol=1e-4)


def test_an_export_is_silent(original: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The libraries' warnings about themselves reach nobody, and their loggers are left as they were."""
    levels = [logging.getLogger(name).level for name in ("", "torch.onnx")]
    with caplog.at_level("WARNING"):
        export(original, tmp_path / "out", samples=QUESTIONS)
    assert caplog.text == ""
    assert [logging.getLogger(name).level for name in ("", "torch.onnx")] == levels


@pytest.mark.parametrize("pooling", ["max", "lasttoken"])
def test_other_pooling_is_refused(pooling: str, tmp_path: Path) -> None:
    """Pooling that the graph can not do is named, and nothing is written."""
    with pytest.raises(EncoderError, match=f"pools by {pooling}"):
        export(sentence_transformer(tmp_path / "bert", pooling=pooling), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_other_modules_are_refused_by_name(tmp_path: Path) -> None:
    """A model with a part that an export does not know is refused, and the part is named."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense

    parts = list(sentence_transformer(tmp_path / "bert"))
    with pytest.raises(EncoderError, match="Transformer, Pooling, Dense"):
        export(SentenceTransformer(modules=[*parts, Dense(32, 8)], device="cpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_is_refused(tmp_path: Path) -> None:
    """A model that writes something before each question is refused."""
    model = sentence_transformer(tmp_path / "bert")
    model.prompts, model.default_prompt_name = {"ask": "the heart:"}, "ask"
    with pytest.raises(EncoderError, match="prompt `ask`"):
        export(model, tmp_path / "out")


def test_what_is_there_is_kept(original: Any, tmp_path: Path) -> None:
    """A folder that holds something, and a file, are not written over."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    for taken in (tmp_path / "out", tmp_path / "out" / "notes.txt"):
        with pytest.raises(EncoderError, match="exists already"):
            export(original, taken)
    assert (tmp_path / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TOLERANCE", 0.0, "differs from torch"),
        ("MIN_COSINE", 1.1, "mean cosine of"),
        ("_quantize", lambda exact, path: path.write_bytes(b"{"), "model.onnx"),
    ],
)
def test_a_bad_export_leaves_nothing(
    name: str, value: object, message: str, original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What differs too much from the original, or can not be loaded, is refused, and no file of it stays."""
    monkeypatch.setattr(onnx_export, name, value)
    with pytest.raises(EncoderError, match=message):
        export(original, tmp_path / "out", samples=QUESTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_transformer_that_exports_wrongly_is_refused(tmp_path: Path) -> None:
    """A transformer that reads its mask another way (here: a local one) is found out by comparison."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import ModernBertConfig, ModernBertModel

    sentence_transformer(tmp_path / "bert")  # for its tokenizer
    config = ModernBertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        local_attention=4,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        initializer_range=0.2,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), 2),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), 3),
    )
    ModernBertModel(config).save_pretrained(tmp_path / "bert")
    model = SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(32)], device="cpu")
    with pytest.raises(EncoderError, match="differs from torch"):
        export(model, tmp_path / "out", samples=QUESTIONS)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages of an export, it says which are missing and what installs them."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnxs") else object())
    with pytest.raises(EncoderError, match="needs onnxscript, which is not installed") as caught:
        check_packages()
    assert "hlo[export]" in caught.value.remedy
