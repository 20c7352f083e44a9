"""Rounds an int8 encoder's weights anew, so that x86 CPUs without VNNI compute it right at their full speed.

Such CPUs multiply activations of 0 to 255 with weights of -127 to 127 and add the products of two neighbouring inputs
in 16 bits. Those hold 255 times 128, so nothing overflows where no two neighbouring weights of one sign add up to more
than 128. Seven bits for all weights would do, and cost half of their precision; a column whose largest neighbours are
brought to that sum loses a fifth of it. What the rounding of one weight spoils, the weights behind it make good on the
activations of HLO's own examples (GPTQ: Frantar et al. 2022, arXiv:2210.17323).

``python -m adapters.recipe.encoder.narrow FOLDER`` does it to the encoder in a folder, in place.
"""

from __future__ import annotations

import argparse
import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from msgspec.structs import replace
from onnx import numpy_helper
from tokenizers import Tokenizer

from hlo.routing.onnx_encoder import DESCRIPTION, INPUTS, MODEL, TOKENIZER, Description

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Table = NDArray[np.floating[Any]]

#: The most that two neighbouring weights of one sign may add up to.
MOST = 128
#: Scales that are tried for a column, as multiples of the one that brings its largest weight to 127.
_TRIED = np.linspace(1, 2.05, 106)
#: Every so-manieth of HLO's examples is calibrated on.
_EVERY = 8
#: Added to the diagonal of a layer's second moments, as a share of their mean.
_DAMPING = 0.01
_TEXTS = 64  # whose activations are multiplied at once
_BLOCK = 128  # weights of a column whose rounding is made good in one multiplication


def narrow(folder: Path, texts: Sequence[str]) -> None:
    """Round the weights of the encoder in ``folder``, whose matrices are ``MatMulInteger``'s, on ``texts``."""
    described = msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
    model = onnx.load(folder / MODEL)
    weights = {one.name: one for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    inputs = {node.input[0]: node.input[2] for node in nodes}  # activations and their zero points
    moments = _moments(model, inputs, _ids(folder, texts, described.max_tokens))
    for node in nodes:
        name = node.input[1]
        scale = weights[name.replace("_quantized", "_scale")]
        wanted = numpy_helper.to_array(weights[name]) * numpy_helper.to_array(scale).astype(np.float64)
        scales = _scales(wanted)
        rounded = _rounded(wanted / scales, moments[node.input[0]])
        weights[name].CopyFrom(numpy_helper.from_array(rounded.astype(np.int8), name))
        scale.CopyFrom(numpy_helper.from_array(scales.astype(np.float32), scale.name))
    onnx.save(model, folder / MODEL)
    text = msgspec.json.format(msgspec.json.encode(replace(described, sum_bits=16)), indent=2)
    (folder / DESCRIPTION).write_bytes(text + b"\n")


def calibration(root: Path) -> list[str]:
    """Every eighth of a checkout's examples, and of its background."""
    files = [*sorted(root.glob("plugins/*/src/*/examples.toml")), root / "hlo/routing/background.toml"]
    parts = [tomllib.loads(file.read_text(encoding="utf-8")).values() for file in files]
    examples, background = list(itertools.chain(*itertools.chain(*parts[:-1]))), list(itertools.chain(*parts[-1]))
    return [*examples[::_EVERY], *background[::_EVERY]]


def _ids(folder: Path, texts: Sequence[str], most: int) -> list[NDArray[np.int64]]:
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(most)
    return [np.array([tokenizer.encode(text).ids]) for text in texts]


def _moments(model: Any, inputs: dict[str, str], texts: Sequence[NDArray[np.int64]]) -> dict[str, Table]:
    """The second moments of activations, in steps of their own rounding, by their names."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = sorted({*inputs, *inputs.values()})
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    moments: dict[str, Table] = {}
    for start in range(0, len(texts), _TEXTS):
        rows: dict[str, list[Table]] = {name: [] for name in inputs}
        for ids in texts[start : start + _TEXTS]:
            given = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
            found = dict(zip(names, session.run(names, given), strict=True))
            for name, zero in inputs.items():
                rows[name].append(found[name][0].astype(np.float32) - np.float32(found[zero]))
        for name, parts in rows.items():
            table = np.concatenate(parts)
            moments[name] = moments.get(name, np.float64(0)) + (table.T @ table).astype(np.float64)
    return moments


def _scales(wanted: Table) -> Table:
    """Each column's scale with the least squared error, where sums that are too large are cut by halves."""
    largest = np.maximum(np.abs(wanted).max(axis=0), 1e-12) / 127
    errors = np.stack([_error(wanted / (largest * times)) * times**2 for times in _TRIED])
    return np.asarray(largest * _TRIED[errors.argmin(axis=0)])


def _error(columns: Table) -> Table:
    rounded = np.clip(np.round(columns), -127, 127)
    one, other = rounded[0::2], rounded[1::2]
    over = np.where(one * other > 0, np.maximum(np.abs(one + other) - MOST, 0), 0)
    rounded[0::2] -= np.sign(one) * np.ceil(over / 2)
    rounded[1::2] -= np.sign(other) * np.floor(over / 2)
    return np.asarray(((rounded - columns) ** 2).sum(axis=0))


def _rounded(columns: Table, moments: Table) -> Table:
    """Whole numbers for ``columns``, shape (inputs, outputs), of which no neighbours of one sign exceed ``MOST``."""
    size = len(columns)
    damped = moments + np.eye(size) * (_DAMPING * moments.trace() / size + 1e-6)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, rounded = columns.copy(), np.zeros_like(columns)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        spoilt = np.zeros((end - start, columns.shape[1]))
        for row in range(start, end):
            before = rounded[row - 1] if row % 2 else np.zeros(columns.shape[1])
            least, most = np.maximum(-127, -MOST - np.minimum(before, 0)), np.minimum(127, MOST - np.maximum(before, 0))
            rounded[row] = np.clip(np.round(left[row]), least, most)
            spoilt[row - start] = (left[row] - rounded[row]) / upper[row, row]
            left[row + 1 : end] -= np.outer(upper[row, row + 1 : end], spoilt[row - start])
        left[end:] -= upper[start:end, end:].T @ spoilt
    return rounded


def main() -> None:
    """Round the weights of the encoder in a folder."""
    line = argparse.ArgumentParser(prog="python -m adapters.recipe.encoder.narrow", description=__doc__)
    line.add_argument("folder", type=Path)
    narrow(line.parse_args().folder, calibration(Path(__file__).resolve().parents[3]))


if __name__ == "__main__":
    main()
