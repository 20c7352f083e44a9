"""The fast encoder: a folder that `hlo.routing.onnx_export` wrote, run by ONNX Runtime on the CPU, without torch.

The folder holds `model.onnx` (from token ids to unit vectors, pooling included), `tokenizer.json` and `encoder.json`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from hlo.errors import EncoderError
from hlo.routing.fingerprint import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
DESCRIPTION = "encoder.json"
INPUTS = ("input_ids", "attention_mask")  # int64, shape (questions, tokens)
OUTPUT = "embedding"  # float32, shape (questions, dimension)

_AGAIN = "Fetch the encoder again, or make it again with `hlo models export-encoder`."
# ONNX Runtime 1.32 computes the fused node four times slower than the two that it stands for: a question of 30 tokens
# takes 2.8 ms with it and 2.3 ms without.
_SLOWER = ["SkipLayerNormFusion"]


class Description(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `encoder.json`. `max_tokens` is where a question is cut; `base` is what it was exported from.

    `sum_bits`: how many bits hold every sum of two neighbouring products of the int8 graph; 16 where its weights were
    chosen so.
    """

    format: Literal[1] = 1
    name: Annotated[str, Meta(min_length=1)]
    dimension: Annotated[int, Meta(ge=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    base: str = ""
    quantization: Literal["none", "int8"] = "none"
    sum_bits: Literal[16, 32] = 32


class OnnxEncoder:
    """An exported encoder on the CPU, giving unit vectors (`hlo.contracts.Encoder`).

    Questions are computed one by one, in the caller's thread; up to `threads` callers may ask at once. In one
    computation, int8 activations would share one scale, so that a question's vector would depend on who asks beside it
    (mean cosine 0.998 with itself alone, as far as int8 is from float32), and batches of equal lengths would save a
    tenth of the time at most. Several threads for one question make it faster by little and cost much CPU time.
    """

    def __init__(
        self, name: str, description: Description, session: Any, tokenizer: Any, fingerprint: str, threads: int = 1
    ) -> None:
        self._name = name
        self._description = description
        self._session = session
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        self.threads = threads

    @classmethod
    def load(cls, folder: Path, name: str = "", threads: int = 1) -> OnnxEncoder:
        """Load from a folder; without a `name`, the encoder has the one in its `encoder.json`.

        `threads` is how many may ask it at once. Raises `EncoderError`.
        """
        description = _read(folder)
        session = _session(folder / MODEL, description.sum_bits)
        tokenizer = _tokenizer(folder / TOKENIZER, description.max_tokens)
        files = (folder / file for file in (MODEL, TOKENIZER, DESCRIPTION))
        encoder = cls(name or description.name, description, session, tokenizer, fingerprint(folder, files), threads)
        encoder._check(folder)
        return encoder

    @property
    def name(self) -> str:
        """What the operator calls it."""
        return self._name

    @property
    def fingerprint(self) -> str:
        """A hash of graph, weights, tokenizer and lengths."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._description.dimension

    @property
    def description(self) -> Description:
        """What its `encoder.json` says."""
        return self._description

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension); a question of more than `max_tokens` is cut there.

        A question's vector does not depend on the others. Raises `EncoderError`.
        """
        vectors = np.empty((len(questions), self.dimension), dtype=np.float32)
        for row, question in enumerate(questions):
            vectors[row] = self._vector(question)
        return vectors

    def _vector(self, question: str) -> NDArray[np.float32]:
        readable = question.encode(errors="replace").decode()  # half a surrogate pair is no text for the tokenizer
        ids = np.array([self._tokenizer.encode(readable).ids], dtype=np.int64)
        try:
            (found,) = self._session.run([OUTPUT], dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)))
        except Exception as error:  # ONNX Runtime's errors share no base
            # Not `from` it: its text may hold one of the question's tokens.
            raise EncoderError(
                f"The encoder `{self._name}` failed with {type(error).__name__}.", remedy=_AGAIN
            ) from None
        norm = float(np.linalg.norm(found)) if found.shape == (1, self.dimension) else float("nan")
        if not 0 < norm < float("inf"):
            raise EncoderError(
                f"The encoder `{self._name}` gave no vector of length {self.dimension} with a direction.",
                remedy=_AGAIN,
            )
        return np.asarray(found[0] / norm, dtype=np.float32)

    def _check(self, folder: Path) -> None:
        """Refuse a graph of another shape than expected before anybody asks. Raises `EncoderError`."""
        inputs = tuple((one.name, one.type) for one in self._session.get_inputs())
        outputs = {one.name: one.type for one in self._session.get_outputs()}
        wanted = tuple((name, "tensor(int64)") for name in INPUTS)
        if sorted(inputs) != sorted(wanted) or outputs.get(OUTPUT) != "tensor(float)":
            raise EncoderError(
                f"`{folder / MODEL}` takes {inputs} and gives {outputs}; wanted were the int64 inputs "
                f"{' and '.join(INPUTS)} and the float output {OUTPUT}.",
                remedy="Export it with `hlo models export-encoder`.",
            )
        try:
            self._vector("?")
        except EncoderError as error:
            raise EncoderError(f"`{folder / MODEL}` can not be used: {error.message}", remedy=_AGAIN) from error


def is_exported(folder: Path) -> bool:
    """Whether a folder is one for `OnnxEncoder`."""
    return (folder / MODEL).is_file() and (folder / DESCRIPTION).is_file()


def _read(folder: Path) -> Description:
    path = folder / DESCRIPTION
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EncoderError(f"`{path}` does not describe an encoder: {error}", remedy=_AGAIN) from error


def runtime() -> Any:
    """ONNX Runtime, kept from telling its makers of the machine that it runs on (its Privacy.md).

    The call that it has for that comes too late: a first event is on its way by then, and a device's id in a file.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def in_one_thread() -> Any:
    """ONNX Runtime's options for a session that runs each time in the thread that calls it, and logs errors only."""
    options = runtime().SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return options


def _session(path: Path, sum_bits: int) -> Any:
    """The graph, ready to run."""
    onnxruntime = runtime()
    options = in_one_thread()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # it would be kept for every length of a question, and makes none faster
    # x86 CPUs without VNNI add products of 8-bit numbers in 16 bits and cut off what does not fit: vectors would be
    # 0.004 of a cosine away from those of all other CPUs. With this they add in 32 bits, and take an eighth longer.
    options.add_session_config_entry("session.x64quantprecision", "1" if sum_bits == 32 else "0")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
        )
    except Exception as error:  # ONNX Runtime's errors share no base
        raise EncoderError(f"`{path}` is no model that ONNX Runtime can run: {error}", remedy=_AGAIN) from error


def _tokenizer(path: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise EncoderError(f"`{path}` holds no tokenizer: {error}", remedy=_AGAIN) from error
    own = tokenizer.num_special_tokens_to_add(False)
    if max_tokens <= own:
        raise EncoderError(
            f"`{path.with_name(DESCRIPTION)}` has a `max_tokens` of {max_tokens}; the tokenizer's own take {own}.",
            remedy=_AGAIN,
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer
