"""The exported encoder, on one that only adds up its tokens' vectors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.errors import EncoderError
from hlo.generation.base_model import embedded_root
from hlo.routing.onnx_encoder import OnnxEncoder, is_exported
from hlo.routing.onnx_export import SAMPLES
from tests.tiny_encoder import WORDS, exported

FILES = ("model.onnx", "tokenizer.json", "encoder.json")
# What hypothesis asks: known and unknown words, no word at all, and lengths beyond the cut.
QUESTIONS = st.lists(st.sampled_from((*WORDS[5:], "unheard-of")), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def weights() -> Any:
    """The tokens' vectors, shape (tokens, 4)."""
    return np.random.default_rng(7).normal(size=(len(WORDS), 4)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: Any) -> Path:
    """An exported encoder's folder."""
    return exported(tmp_path_factory.mktemp("encoder"), weights=weights)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> OnnxEncoder:
    """The encoder in it; it never changes, so that hypothesis can share it between its examples."""
    return OnnxEncoder.load(folder)


def test_vectors_are_what_the_graph_gives_made_unit(encoder: OnnxEncoder, weights: Any) -> None:
    """A vector is the graph's, of the question's own tokens and no padding, at length 1 and in float32."""
    (found,) = encoder.encode(["heart pain"])
    wanted = weights[[WORDS.index(word) for word in ("[CLS]", "heart", "pain", "[SEP]")]].sum(axis=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-6)


@given(st.lists(QUESTIONS, max_size=8))
def test_a_vector_depends_on_its_question_only(encoder: OnnxEncoder, questions: list[str]) -> None:
    """Each row is its question's vector, whatever stands beside it and in whatever order."""
    vectors = encoder.encode(questions)
    assert vectors.shape == (len(questions), 4)
    for row, question in zip(vectors, questions, strict=True):
        assert (row == encoder.encode([question])[0]).all()
    assert (encoder.encode(questions[::-1]) == vectors[::-1]).all()


def test_this_cpu_gives_what_the_graph_says() -> None:
    """HLO's own encoder, in int8, gives the vectors of a computation with exact sums, whatever CPU this is."""
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from tokenizers import Tokenizer

    class GatherElements(OpRun):  # type: ignore[misc]  # onnx is not typed here
        """In the place of onnx's own, which refuses more than 64 columns."""

        def _run(self, data: Any, indices: Any, axis: int) -> tuple[Any]:
            return (np.take_along_axis(data, indices, axis=axis),)

    own = embedded_root() / "models" / "hlo-encoder"
    exact = ReferenceEvaluator(onnx.load(own / "model.onnx"), new_ops=[GatherElements])
    tokenizer = Tokenizer.from_file(str(own / "tokenizer.json"))
    wanted = []
    for question in SAMPLES[:6]:
        ids = np.array([tokenizer.encode(question).ids])
        (found,) = exact.run(["embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        wanted.append(found[0] / np.linalg.norm(found[0]))
    cosines = (OnnxEncoder.load(own).encode(SAMPLES[:6]) * np.stack(wanted)).sum(axis=1)
    # A last bit of a float32 can round an activation the other way; sums that overflow would give 0.996 in the mean.
    assert cosines.min() > 0.996
    assert cosines.mean() > 0.998


@pytest.mark.parametrize(("sum_bits", "wider"), [(16, "0"), (32, "1")])
def test_sums_are_wider_where_the_weights_need_it(folder: Path, tmp_path: Path, sum_bits: int, wider: str) -> None:
    """x86 CPUs without VNNI take their exact way, which is slower, unless the weights were chosen for 16 bits."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    described = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    (tmp_path / "encoder.json").write_text(json.dumps(described | {"sum_bits": sum_bits}), encoding="utf-8")
    options = OnnxEncoder.load(tmp_path)._session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == wider


def test_no_two_weights_of_hlos_own_encoder_overflow() -> None:
    """Neighbouring weights of one sign, times activations of 255, fit the 16 bits that its description promises."""
    import onnx

    own = embedded_root() / "models" / "hlo-encoder"
    assert OnnxEncoder.load(own).description.sum_bits == 16
    graph = onnx.load(own / "model.onnx").graph
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    matrices = [weights[node.input[1]].astype(int) for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(matrices) == 36
    for one in matrices:
        sums = np.where(one[0::2] * one[1::2] > 0, one[0::2] + one[1::2], 0)
        assert 255 * max(np.abs(one).max(), np.abs(sums).max()) < 2**15


def test_wider_sums_change_nothing_in_hlos_own_encoder(tmp_path: Path) -> None:
    """Its vectors are the same to the last bit, whether products are added in 16 bits or in 32."""
    own = embedded_root() / "models" / "hlo-encoder"
    for name in FILES:
        shutil.copy(own / name, tmp_path)
    described = json.loads((own / "encoder.json").read_text(encoding="utf-8"))
    (tmp_path / "encoder.json").write_text(json.dumps(described | {"sum_bits": 32}), encoding="utf-8")
    assert (OnnxEncoder.load(tmp_path).encode(SAMPLES) == OnnxEncoder.load(own).encode(SAMPLES)).all()


def test_no_questions_are_no_vectors(encoder: OnnxEncoder) -> None:
    """Of nothing, there is nothing, of the right width."""
    found = encoder.encode([])
    assert found.shape == (0, encoder.dimension) == (0, 4)
    assert found.dtype == np.float32


def test_a_long_question_is_cut(encoder: OnnxEncoder) -> None:
    """Tokens beyond `max_tokens`, the tokenizer's own two among them, do not count; the last before does."""
    start = "heart " * 5
    assert (encoder.encode([f"{start} brain" + " lung" * 500]) == encoder.encode([f"{start} brain"])).all()
    assert not np.allclose(encoder.encode([f"{start} brain"]), encoder.encode([f"{start} lung"]), atol=1e-3)


def test_half_a_surrogate_pair_is_an_unknown_word(encoder: OnnxEncoder) -> None:
    """What is no text can be encoded nevertheless."""
    assert (encoder.encode(["heart \ud83d"]) == encoder.encode(["heart ?"])).all()


def test_what_it_says_of_itself(encoder: OnnxEncoder, folder: Path) -> None:
    """It is called as it was asked for, or as its file says, and knows its dimension."""
    assert (encoder.name, encoder.dimension, encoder.description.max_tokens) == ("tiny", 4, 8)
    assert OnnxEncoder.load(folder, "clinic/encoder").name == "clinic/encoder"


def test_several_threads_may_ask_at_once(encoder: OnnxEncoder) -> None:
    """Whoever asks beside it, a question has the vector that it has alone."""
    asked = ["heart", "brain pain", "lung", "foot", "the heart"] * 8
    alone = [encoder.encode([question]) for question in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda question: encoder.encode([question]), asked))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


def test_a_failure_leaves_the_encoder_usable(encoder: OnnxEncoder) -> None:
    """A batch with a question that fails, fails; the next one does not."""
    with pytest.raises(EncoderError, match="`tiny` failed with"):
        encoder.encode(["heart", "beyond", "heart"])
    assert encoder.encode(["heart"] * 10).shape == (10, 4)


@pytest.mark.parametrize("changed", FILES)
def test_the_fingerprint_is_of_the_content(changed: str, encoder: OnnxEncoder, folder: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same fingerprint, with a README too; another graph, tokenizer or length another."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("other", encoding="utf-8")
    assert OnnxEncoder.load(copy, "elsewhere").fingerprint == encoder.fingerprint
    other = exported(tmp_path / "other", description={"max_tokens": 9})
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('"[MASK]"', '"[GAP]"'), encoding="utf-8")
    shutil.copy(other / changed, copy / changed)
    assert OnnxEncoder.load(copy).fingerprint != encoder.fingerprint


@pytest.mark.parametrize("content", [None, b"", b"{", b"\x00\xff\x80"], ids=["missing", "empty", "cut", "bytes"])
@pytest.mark.parametrize("damaged", FILES)
def test_a_damaged_file_is_refused_by_its_path(
    damaged: str, content: bytes | None, folder: Path, tmp_path: Path
) -> None:
    """Whichever file is missing or damaged, the error names it and says what to do."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / damaged).unlink()
    if content is not None:
        (copy / damaged).write_bytes(content)
    with pytest.raises(EncoderError) as caught:
        OnnxEncoder.load(copy)
    assert str(copy / damaged) in caught.value.message
    assert "hlo models export-encoder" in caught.value.remedy


@pytest.mark.parametrize(
    ("description", "place"),
    [
        ({"format": 2}, "$.format"),
        ({"name": ""}, "$.name"),
        ({"name": None}, "name"),
        ({"dimension": 0}, "$.dimension"),
        ({"dimension": "4"}, "$.dimension"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "$.max_tokens"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"quantization": "int3"}, "$.quantization"),
        ({"pooling": "max"}, "pooling"),
    ],
    ids=str,
)
def test_nonsense_in_the_description_is_refused(description: dict[str, Any], place: str, tmp_path: Path) -> None:
    """What `encoder.json` may not say is refused with its place, in a file that is named."""
    folder = exported(tmp_path, description=description)
    with pytest.raises(EncoderError) as caught:
        OnnxEncoder.load(folder)
    assert str(folder / "encoder.json") in caught.value.message
    assert place in caught.value.message


@pytest.mark.parametrize(
    "other",
    [
        {"description": {"dimension": 5}},
        {"output": "sentence_embedding"},
        {"weights": np.full((len(WORDS), 4), np.nan)},
        {"weights": np.zeros((len(WORDS), 4))},
    ],
    ids=["dimension", "output", "nan", "zero"],
)
def test_a_graph_of_another_kind_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    """A graph whose vectors have another length, another name or no direction is refused before anybody asks."""
    folder = exported(tmp_path, **other)
    with pytest.raises(EncoderError) as caught:
        OnnxEncoder.load(folder)
    assert str(folder / "model.onnx") in caught.value.message


def test_a_failure_says_nothing_of_the_question(encoder: OnnxEncoder) -> None:
    """When the graph fails, neither the error nor its cause holds a word or a token's number."""
    with pytest.raises(EncoderError, match="`tiny` failed with") as caught:
        encoder.encode(["brain", "heart beyond"])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not {"heart", "beyond", str(len(WORDS))} & set(str(caught.value).replace("`", " ").split())


@pytest.mark.parametrize("gone", ["model.onnx", "encoder.json"])
def test_what_is_an_exported_encoder(gone: str, folder: Path, tmp_path: Path) -> None:
    """A folder is one when it has both the graph and its description."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert is_exported(copy)
    (copy / gone).unlink()
    assert not is_exported(copy)


def test_it_needs_no_torch(folder: Path) -> None:
    """Choosing, loading and encoding load neither torch nor a library that would."""
    probe = (
        "import sys\n"
        "from hlo.routing import encoders\n"
        "assert encoders.load(sys.argv[1]).encode(['heart']).shape == (1, 4)\n"
        "print(*sorted({'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_onnx_runtime_tells_nobody(folder: Path, tmp_path: Path) -> None:
    """An encoder in use leaves neither device id nor waiting events, which ONNX Runtime would send to its makers."""
    code = "import sys; from pathlib import Path; from hlo.routing.onnx_encoder import OnnxEncoder as Encoder\n"
    code += "Encoder.load(Path(sys.argv[1])).encode(['heart'])"
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"), str(tmp_path))
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env={**os.environ, **homes})
    assert list(tmp_path.iterdir()) == []
