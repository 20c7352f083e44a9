"""Reads the two files of an adapter in full, and refuses what an engine would serve wrong, or die of."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlo.errors import AdapterError

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# Features of PEFT that change what the two matrices mean; vLLM refuses the same ones (lora/peft_helper.py).
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "use_qalora",
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
)
_PATTERN = r"(.*\.)?({})$"
_MOST = sys.float_info.max
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


def read_config(copy: Path, folder: Path) -> dict[str, Any]:
    """Read and check a copy's adapter_config.json; messages name `folder`, its source. Raises `AdapterError`."""
    try:
        config = json.loads((copy / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"`{folder}/{CONFIG}` is not JSON: {error}", remedy="Save the adapter again.") from error
    place = f"`{folder}/{CONFIG}`"
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{place} describes no LoRA: peft_type is {kind!r}.", remedy="HLO serves LoRA adapters.")
    if type(config.get("r")) is not int or config["r"] < 1:
        raise AdapterError(f"{place}: `r` must be a positive integer, not {config.get('r')!r}.", remedy="Save again.")
    if type(config.get("lora_alpha")) not in (int, float) or not abs(config["lora_alpha"]) <= _MOST:
        raise AdapterError(f"{place}: `lora_alpha` must be a number.", remedy="Save the adapter again.")
    if not isinstance(config.get("base_model_name_or_path") or "", str):
        raise AdapterError(f"{place}: `base_model_name_or_path` must be a string.", remedy="Save the adapter again.")
    ranks, targets = config.get("rank_pattern") or {}, config.get("target_modules")
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank > 0 for rank in ranks.values()):
        raise AdapterError(f"{place}: `rank_pattern` must map patterns to ranks.", remedy="Save the adapter again.")
    _check_patterns(place, "rank_pattern", ranks)
    _check_patterns(place, "target_modules", [targets] if isinstance(targets, str) else [])
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        used.append(f"init_lora_weights={init}")
    if used:
        raise AdapterError(
            f"{place} uses {', '.join(f'`{name}`' for name in used)}, which can not be served.",
            remedy="Convert it to a plain LoRA with PEFT, or train one.",
        )
    return config


def _check_patterns(place: str, key: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
            re.compile(_PATTERN.format(pattern))  # as it is used
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(
                f"{place}: `{key}` holds `{pattern}`, which is no pattern: {error}.", remedy="Save the adapter again."
            ) from error


def check_tensors(
    weights: Path, folder: Path, config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]
) -> tuple[int, tuple[str, ...]]:
    """Check every tensor's name, shape and values; the highest rank, and the kinds of layer. Raises `AdapterError`."""
    import torch
    from safetensors import SafetensorError, safe_open

    pairs: dict[str, dict[str, torch.Tensor]] = {}
    place = f"`{folder}/{WEIGHTS}`"
    try:
        with safe_open(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                match = _KEY.fullmatch(key)
                if match is None:
                    raise AdapterError(
                        f"{place}: tensor `{key}` is no LoRA matrix of a linear layer.",
                        remedy="Save the adapter with PEFT; embeddings and output heads can not be adapted.",
                    )
                pair = pairs.setdefault(match["module"], {})
                if match["side"] in pair:
                    raise AdapterError(f"{place} holds `{key}` twice, under two names.", remedy="Save it again.")
                pair[match["side"]] = file.get_tensor(key)
    except SafetensorError as error:
        raise AdapterError(f"{place} is damaged: {error}", remedy="Fetch or save it again.") from error
    if not pairs:
        raise AdapterError(f"{place} holds no tensor.", remedy="Save the adapter again.")
    effect = False
    for module, pair in pairs.items():
        if module not in linears:
            raise AdapterError(
                f"{place} adapts the layer `{module}`, which the base model does not have.",
                remedy="Use the adapter with the base model that it was trained on.",
            )
        if not _targeted(module, config.get("target_modules")):
            raise AdapterError(
                f"{place} adapts `{module}`, which `target_modules` in {CONFIG} does not name.",
                remedy="Save weights and configuration together.",
            )
        if set(pair) != {"A", "B"}:
            raise AdapterError(f"{place}: `{module}` has only one of lora_A and lora_B.", remedy="Save it again.")
        rank = _rank(module, config)
        out_features, in_features = linears[module]
        for side, wanted in (("A", (rank, in_features)), ("B", (out_features, rank))):
            if tuple(pair[side].shape) != wanted:
                raise AdapterError(
                    f"{place}: `{module}.lora_{side}` has shape {tuple(pair[side].shape)}; "
                    f"rank {rank} on this base model wants {wanted}.",
                    remedy="Use the adapter with the base model that it was trained on.",
                )
            if pair[side].dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                raise AdapterError(
                    f"{place}: `{module}.lora_{side}` is of {pair[side].dtype}.",
                    remedy="Save it in float32, bfloat16 or float16.",
                )
            if not torch.isfinite(pair[side]).all():
                raise AdapterError(
                    f"{place}: `{module}.lora_{side}` holds NaN or infinite values.", remedy="Train it again."
                )
        effect = effect or _changes(pair["A"], pair["B"])
    if not effect or not config["lora_alpha"]:
        raise AdapterError(f"{place} changes nothing: every update is zero.", remedy="Train it, or leave it out.")
    return max(_rank(module, config) for module in pairs), tuple(sorted({m.rpartition(".")[2] for m in pairs}))


def _changes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether `b @ a` is anything but zeros; shapes (rank, in) and (out, rank).

    What it makes of one vector without zeros tells: the whole product has thousands of rows and columns, and takes as
    long for each adapter as all else that is checked.
    """
    import torch

    vector = torch.rand(a.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    return bool((b.double() * (a.double() * vector).sum(1)).sum(1).any())


def _rank(module: str, config: Mapping[str, Any]) -> int:
    """The rank of one layer; patterns match as in PEFT's `get_pattern_key`."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.match(_PATTERN.format(pattern), module):
            return int(rank)
    return int(config["r"])


def _targeted(module: str, targets: object) -> bool:
    """Whether PEFT would adapt `module`: `targets` is a pattern for the whole name, or a list of last parts."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, module) is not None
    return isinstance(targets, list) and any(module == one or module.endswith(f".{one}") for one in targets)
