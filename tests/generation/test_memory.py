"""Estimates of memory, from configuration alone."""

from __future__ import annotations

import pytest

from hlo.generation.base_model import BaseModel
from hlo.generation.memory import estimate


def test_weights_are_parameters_times_bytes(tiny_model: BaseModel) -> None:
    """Weights take as many bytes as parameters times bytes per value, and 8 bit shrinks the linear layers alone."""
    wide = estimate(tiny_model, bytes_per_value=2, eight_bit=False, slots=0, rank=0, kinds=())
    small = estimate(tiny_model, bytes_per_value=2, eight_bit=True, slots=0, rank=0, kinds=())
    linear = sum(out * into for out, into in tiny_model.linears.values())
    assert wide.weights == 2 * tiny_model.parameters
    assert wide.weights - small.weights == linear


def test_adapters_are_two_matrices_a_layer(tiny_model: BaseModel) -> None:
    """A slot takes rank times (out + in) values for each layer of the kinds that adapters touch."""
    found = estimate(tiny_model, bytes_per_value=2, eight_bit=False, slots=3, rank=4, kinds=("q_proj", "v_proj"))
    assert found.adapters == 3 * 2 * 2 * (4 * (64 + 64) + 4 * (32 + 64))


def test_the_cache_holds_keys_and_values_of_every_layer(tiny_model: BaseModel) -> None:
    """A token takes keys and values of each layer's key-value heads."""
    found = estimate(tiny_model, bytes_per_value=4, eight_bit=False, slots=0, rank=0, kinds=())
    assert found.kv_per_token == 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("extra", [0, 511, 512, 5120])
def test_tokens_fill_what_is_left(extra: int, tiny_model: BaseModel) -> None:
    """As many tokens fit as there is room for beside weights, adapters and the rest."""
    found = estimate(tiny_model, bytes_per_value=4, eight_bit=False, slots=0, rank=0, kinds=())
    assert found.tokens(found.weights + found.adapters + found.overhead + extra) == extra // 512


def test_too_little_memory_is_below_zero(tiny_model: BaseModel) -> None:
    """Where not even the weights fit, the number of tokens is negative."""
    assert estimate(tiny_model, bytes_per_value=4, eight_bit=False, slots=0, rank=0, kinds=()).tokens(0) < 0
