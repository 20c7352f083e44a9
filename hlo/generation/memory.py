"""Estimates, from configuration alone, what a model and its adapters need on a device. Sizes are in bytes.

Good for advice before anything is loaded; the engine's own figures are the truth afterwards.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from hlo.generation.base_model import BaseModel

# What vLLM needs beside weights and cache on a GPU: CUDA context, activations of one step, CUDA graphs.
_OVERHEAD = int(1.5 * 2**30)


class Estimate(Struct, frozen=True):
    """Bytes for weights, for adapter slots, for everything else, and for the KV cache of one token."""

    weights: int
    adapters: int
    overhead: int
    kv_per_token: int

    def tokens(self, available: int) -> int:
        """How many tokens of KV cache fit into `available` bytes beside the rest; below zero: not even that fits."""
        return (available - self.weights - self.adapters - self.overhead) // self.kv_per_token


def estimate(
    model: BaseModel, *, bytes_per_value: int, eight_bit: bool, slots: int, rank: int, kinds: Collection[str]
) -> Estimate:
    """Estimate for `slots` adapters of at most `rank` on layers of `kinds`; `eight_bit` halves the linear layers."""
    linear = sum(out_features * in_features for out_features, in_features in model.linears.values())
    rest = model.parameters - linear
    per_slot = sum(rank * (o + i) for name, (o, i) in model.linears.items() if name.rpartition(".")[2] in kinds)
    config = model.config
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return Estimate(
        weights=linear * (1 if eight_bit else bytes_per_value) + rest * bytes_per_value,
        adapters=slots * per_slot * bytes_per_value,
        overhead=_OVERHEAD,
        kv_per_token=2 * int(config["num_hidden_layers"]) * kv_heads * head_dim * bytes_per_value,
    )
