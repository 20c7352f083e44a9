"""The two protocols: whoever claims to keep them has all of their members."""

from __future__ import annotations

import inspect

import pytest

from hlo.contracts import Encoder, Engine
from hlo.generation.openai_engine import OpenAIEngine
from hlo.generation.transformers_engine import TransformersEngine
from hlo.generation.vllm_engine import VllmEngine
from hlo.routing.onnx_encoder import OnnxEncoder
from hlo.routing.sentence_encoder import SentenceEncoder
from hlo.testing import EchoEngine, HashingEncoder


@pytest.mark.parametrize(
    ("protocol", "kept_by"),
    [
        (Encoder, SentenceEncoder),
        (Encoder, OnnxEncoder),
        (Encoder, HashingEncoder),
        (Engine, VllmEngine),
        (Engine, OpenAIEngine),
        (Engine, TransformersEngine),
        (Engine, EchoEngine),
    ],
    ids=lambda one: str(one.__name__),
)
def test_contracts_are_kept(protocol: type, kept_by: type) -> None:
    """Every method of a protocol is there with the same parameters, and is asynchronous where that is promised."""
    for name, promised in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(promised):
            continue
        kept = inspect.getattr_static(kept_by, name)
        assert list(inspect.signature(kept).parameters) == list(inspect.signature(promised).parameters), name
        assert inspect.iscoroutinefunction(kept) == inspect.iscoroutinefunction(promised), name


@pytest.mark.parametrize("protocol", [Encoder, Engine], ids=lambda one: str(one.__name__))
def test_contracts_say_what_they_raise(protocol: type) -> None:
    """Every member of a protocol has a docstring: it is all that an author of another one has."""
    members = [value for name, value in vars(protocol).items() if not name.startswith("_")]
    assert [member for member in members if callable(member) and not inspect.getdoc(member)] == []
