"""Exports a sentence-transformers model for `hlo.routing.onnx_encoder`, and shows that it still gives its vectors."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from hlo.errors import EncoderError
from hlo.routing.onnx_encoder import DESCRIPTION, INPUTS, MODEL, OUTPUT, TOKENIZER, Description, OnnxEncoder, runtime
from hlo.routing.sentence_encoder import SentenceEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_COSINE = 0.98
"""The mean cosine with the original below which an int8 export is refused."""
TOLERANCE = 1e-4
"""How far any value of any vector of the float32 graph may be from torch's."""

_MIN_COSINE_EXACT = 0.9999  # in float32
_NEEDED = ("torch", "sentence_transformers", "onnx", "onnxscript", "onnxruntime")
_INSTEAD = "Serve it as it is: HLO_ENCODER takes a sentence-transformers model too."
_LONGEST = 512  # tokens in the comparison with torch: what differs does so at shorter ones too

# Of many lengths, in the words of people who ask, and some that are not about health.
SAMPLES = (
    "Headache?",
    "is it safe to fly at 34 weeks",
    "my knee clicks when I go downstairs and by evening it is swollen",
    "Can I drink alcohol with antibiotics?",
    "Since the weekend my chest feels tight whenever I walk up the hill to work, and it stops when I sit down.",
    "the baby has not had a wet nappy since this morning and will not feed",
    "What do my blood results mean when it says ferritin 9?",
    "I keep forgetting words, and yesterday I did not know for a minute how to get home from the shop.",
    "itchy rash between the fingers, worse at night, my husband has it now too",
    "How do I renew a library card?",
    "After the operation they said I should do exercises for the shoulder, but each time I lift the arm above my head "
    "there is a sharp pain on the outside that lasts for an hour. Should I go on, do fewer of them, or wait until I "
    "see the surgeon again in three weeks? I take paracetamol twice a day and sleep badly because of it.",
    "translate good morning into Portuguese",
    "my son is 14 and hasn't grown in two years, all his friends have",
    "blood in stool twice this week, no pain",
    "Which vaccines do I need for Kenya, and how long before the trip?",
    "mum's tablets were changed from warfarin to something that starts with an a, does she still need the finger test",
)


class ExportReport(Struct, frozen=True):
    """What was written. `size` is of `model.onnx`, in bytes; the cosines are with the original, over `samples` texts.

    `difference` is the largest of any value between the float32 graph and torch.
    """

    folder: Path
    description: Description
    fingerprint: str
    size: int
    samples: int
    mean_cosine: float
    min_cosine: float
    difference: float
    seconds: float


def export(
    model: Any,
    out: Path,
    *,
    quantize: bool = True,
    samples: Sequence[str] = SAMPLES,
    name: str = "",
    base: str = "",
) -> ExportReport:
    """Write an encoder's folder to `out`, whole or not at all; `quantize` makes weights and matrix products int8.

    `model` is a folder or a `SentenceTransformer` of a transformer, mean or CLS pooling, and normalisation or none.
    `base` says where it is from, and `name` what the new encoder is called where nobody calls it otherwise. Raises
    `EncoderError` where `out` is taken, the model has other parts, or the result differs too much from it.
    """
    start = time.perf_counter()
    check_packages()
    from hlo.routing import onnx_graph

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EncoderError(f"`{out}` exists already.", remedy="Name a folder that is not there yet.")
    if isinstance(model, str | Path):
        base = base or Path(model).name
        model = SentenceEncoder.of(Path(model), base).model
    original = copy.deepcopy(model).to("cpu").float().eval()
    pooling = onnx_graph.pooling(original)
    description = Description(
        name=name or f"{Path(base).name or 'encoder'}-{'int8' if quantize else 'onnx'}",
        dimension=int(original.get_embedding_dimension()),
        max_tokens=onnx_graph.max_tokens(original),
        base=base,
        quantization="int8" if quantize else "none",
    )
    with _beside(out) as work:
        exact, folder = work / "float32.onnx", work / "encoder"
        folder.mkdir()
        _write_graph(original, pooling, exact, description)
        difference = _compare(original, exact, description.max_tokens)
        if quantize:
            _quantize(exact, folder / MODEL)
        else:
            exact.rename(folder / MODEL)
        _save_tokenizer(original, folder / TOKENIZER)
        text = msgspec.json.format(msgspec.json.encode(description), indent=2)
        (folder / DESCRIPTION).write_bytes(text + b"\n")
        exported = OnnxEncoder.load(folder)
        cosines = _cosines(original, exported, samples)
        _refuse_distant(cosines, MIN_COSINE if quantize else _MIN_COSINE_EXACT)
        report = ExportReport(
            folder=out,
            description=description,
            fingerprint=exported.fingerprint,
            size=(folder / MODEL).stat().st_size,
            samples=len(samples),
            mean_cosine=float(cosines.mean()),
            min_cosine=float(cosines.min()),
            difference=difference,
            seconds=time.perf_counter() - start,
        )
        if out.exists():  # empty, as was seen above
            out.rmdir()
        folder.rename(out)
    return report


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder to work in, on the same file system, of which nothing is left."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
            yield Path(work)
    except OSError as error:
        raise EncoderError(f"`{out}` can not be written: {error}", remedy="Name a folder on another disk.") from error


def check_packages() -> None:
    """Refuse to begin without the packages that an export needs. Raises `EncoderError`."""
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise EncoderError(
            f"An export needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            remedy="`pip install 'hlo[export]'`.",
        )


def _write_graph(model: Any, pooling: Literal["mean", "cls"], path: Path, description: Description) -> None:
    from hlo.routing import onnx_graph

    try:
        graph = onnx_graph.build(model[0].auto_model, pooling, scale_rows=description.quantization == "int8")
        onnx_graph.write(graph, path, max_tokens=description.max_tokens)
    except Exception as error:  # the exporter can raise anything
        first = str(error).strip().partition("\n")[0]
        raise EncoderError(
            f"torch can not export a {type(model[0].auto_model).__name__}: {type(error).__name__}: {first}",
            remedy=_INSTEAD,
        ) from error


def _compare(model: Any, path: Path, max_tokens: int) -> float:
    """The largest difference of any value from torch, over numbers of questions, lengths and paddings."""
    from hlo.routing.onnx_graph import vectors

    session = runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    vocabulary, pad = len(model.tokenizer), model.tokenizer.pad_token_id
    most = min(max_tokens, _LONGEST)
    largest = 0.0
    for questions, tokens in ((1, 1), (1, 2), (1, 17), (2, 3), (7, 33), (4, most - 1), (1, most), (3, most)):
        tokens = max(1, min(tokens, most))
        lengths = random.integers(1, tokens + 1, size=(questions, 1))
        lengths[0] = tokens
        mask = (np.arange(tokens) < lengths).astype(np.int64)
        ids = random.integers(0, vocabulary, size=mask.shape)
        if pad is not None:
            ids = np.where(mask == 0, pad, np.where(ids == pad, (pad + 1) % vocabulary, ids))
        (found,) = session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))
        largest = max(largest, float(np.abs(found - vectors(model, ids, mask)).max()))
    if not largest <= TOLERANCE:
        raise EncoderError(
            f"The exported graph differs from torch by up to {largest:.2g}; {TOLERANCE:g} was wanted.",
            remedy=_INSTEAD,
        )
    return largest


def _quantize(exact: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Of weights, all 8 bits: 7, with which sums of two products do not saturate on x86 CPUs without VNNI, would cost
    # all CPUs a mean cosine of 0.0012. `OnnxEncoder` has such CPUs add in more bits.
    quantize_dynamic(exact, path, weight_type=QuantType.QInt8, per_channel=True)


def _save_tokenizer(model: Any, path: Path) -> None:
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_truncation()  # what earlier calls left in it; `OnnxEncoder` sets its own
    tokenizer.no_padding()
    tokenizer.save(str(path))


def _cosines(model: Any, exported: OnnxEncoder, samples: Sequence[str]) -> NDArray[np.float64]:
    wanted = SentenceEncoder("original", model, "").encode(samples).astype(np.float64)
    cosines = (exported.encode(samples) * wanted).sum(axis=1)
    return np.asarray(np.minimum(cosines, 1))  # rounding can give more


def _refuse_distant(cosines: NDArray[np.float64], least: float) -> None:
    if not cosines.mean() >= least:
        raise EncoderError(
            f"The exported encoder's vectors have a mean cosine of {cosines.mean():.4f} with the original's; at least "
            f"{least} was wanted.",
            remedy="Export it with --no-quantize, or serve it as it is.",
        )
