"""Chooses the encoder: an exported one where the folder holds it, otherwise a sentence-transformers model."""

from __future__ import annotations

import os
from pathlib import Path

from hlo.contracts import Encoder
from hlo.errors import EncoderError
from hlo.hub import Hub, Reference
from hlo.routing import onnx_encoder, sentence_encoder

EMBEDDED = ("", "embedded")
"""The names of the encoder that comes with HLO."""

_MOST_THREADS = 4  # the engine needs its cores more than questions that come in the same moment


def load(name: str, threads: int | None = None, hub: Hub | None = None, *, embedded: Path | None = None) -> Encoder:
    """Load by a hub's name, by a folder, or by one of `EMBEDDED`, which means the folder `embedded`.

    `threads` are as many as there are cores, 4 at most, where nobody says; of a sentence-transformers model, which
    alone loads torch, it is 1. What lies on a model hub is had through `hub` (default: unpinned, with huggingface_hub's
    own cache). Raises `EncoderError` or `HubError`.
    """
    spread = threads or min(os.cpu_count() or 1, _MOST_THREADS)
    if name in EMBEDDED:
        if embedded is None or not onnx_encoder.is_exported(embedded):
            raise EncoderError(
                "The embedded encoder is not installed." if embedded is None else f"No encoder is in `{embedded}`.",
                remedy="Reinstall HLO, or set HLO_ENCODER to a hub's name or a folder.",
            )
        return onnx_encoder.OnnxEncoder.load(embedded, threads=spread)
    folder = sentence_encoder.locate(name, hub)
    if onnx_encoder.is_exported(folder):
        return onnx_encoder.OnnxEncoder.load(folder, name, spread)
    return sentence_encoder.SentenceEncoder.of(folder, name, threads or 1)


def on_hub(name: str) -> Reference | None:
    """What `load` would fetch from a model hub; None when there is no need to. Raises `EncoderError`."""
    return None if name in EMBEDDED else sentence_encoder.on_hub(name)
