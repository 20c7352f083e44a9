"""Finds adapters, checks every tensor of them, and keeps immutable copies named by content hash.

An engine accepts adapters that are half wrong and then answers with garbage, or dies (vLLM issues #34186, #48352), so
nothing reaches it that this module has not read in full.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from msgspec import Struct

from hlo.errors import AdapterError
from hlo.hub import SCHEME, Hub, Reference
from hlo.records import Adapter, AdapterVersion

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS, "README.md")  # what is fetched of an adapter on a model hub
NULL_NAME = "null"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")
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
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


class Located(Struct, frozen=True):
    """An adapter's folder. Its files may be links, but only to what lies in a folder of `boundary`.

    `source` says where it was found: the folder, or `hf://org/repo@commit`.
    """

    folder: Path
    boundary: tuple[Path, ...]
    source: str

    @classmethod
    def at(cls, folder: Path) -> Located:
        """A folder whose files lie in it."""
        return cls(folder, (folder.resolve(),), str(folder))


def locate(adapter: Adapter, search: tuple[Path, ...], hub: Hub | None = None) -> Located:
    """Find the folder that `adapter` refers to; `search` are the folders in which names are looked up, in order.

    What lies on a model hub is had through `hub` (default: unpinned, with huggingface_hub's own cache). Raises
    `AdapterError`, naming every place it looked in, or `HubError`.
    """
    reference = adapter.reference
    if adapter.package is not None:
        tried = [_inside(_package(adapter.package), reference)]
    elif reference.startswith(SCHEME):
        return _fetched(Reference.parse(reference), hub or Hub())
    elif "://" in reference:
        raise AdapterError(
            f"Adapter reference `{reference}` is a URL of a kind that HLO does not fetch.",
            remedy=f"Refer to it as `{SCHEME}org/repo@commit`, by its folder, or by its name under HLO_ADAPTER_PATH.",
        )
    elif Path(reference).is_absolute():
        tried = [Path(reference)]
    elif _NAME.fullmatch(reference):
        tried = [_inside(root.expanduser().resolve(), reference) for root in search]
    else:
        raise AdapterError(
            f"Adapter reference `{reference}` is neither a name nor an absolute path.",
            remedy="A name has letters, digits, `.`, `_` and `-`; for a folder in your package, give `package` too.",
        )
    for folder in tried:
        try:
            if folder.is_dir():
                return Located.at(folder)
        except OSError:  # a name that is too long, or a folder that can not be entered
            continue
    places = ", ".join(f"`{folder}`" for folder in tried)
    raise AdapterError(
        f"Adapter `{reference}` was not found; looked in {places}.",
        remedy="Put its folder there, or set HLO_ADAPTER_PATH to the folder that holds it.",
    )


def check(
    located: Located,
    name: str,
    linears: Mapping[str, tuple[int, int]],
    base_name: str,
    store: Path,
    max_rank: int | None = None,
) -> AdapterVersion:
    """Copy an adapter into `store`, check the copy in full, and return its version.

    `linears` maps the base model's linear layers to (out, in); `max_rank` is HLO_MAX_LORA_RANK (None: no limit).
    Raises `AdapterError` saying what is wrong and where.
    """
    folder = located.folder
    copy, sha256 = _keep(located, store)
    config = _read_config(copy, folder)
    base = config.get("base_model_name_or_path") or ""
    if base and Path(base).name.lower() != base_name.lower():
        raise AdapterError(
            f"`{folder}` was trained for the base model `{Path(base).name}`; this one is `{base_name}`.",
            remedy="Use an adapter for this base, or set HLO_BASE_NAME if it is the same model under another name.",
        )
    highest = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if max_rank is not None and highest > max_rank:
        raise AdapterError(
            f"`{folder}`: rank {highest} is above HLO_MAX_LORA_RANK={max_rank}.",
            remedy="Raise it, or train with a lower rank.",
        )
    rank, modules = _check_tensors(copy / WEIGHTS, folder, config, linears)
    return AdapterVersion(name, sha256, copy, rank, modules, (copy / WEIGHTS).stat().st_size, located.source)


def null(linears: Mapping[str, tuple[int, int]], base_name: str, kinds: frozenset[str], store: Path) -> AdapterVersion:
    """Make the adapter that changes nothing: rank 1, all zero, on one layer whose kind is in `kinds`.

    vLLM before 0.33 computes, on a CPU, a request without an adapter with the weights of whatever adapter stands in
    the last slot (vLLM pull request #48421). A request with this one is computed right.
    """
    import torch
    from safetensors.torch import save_file

    module, (out_features, in_features) = next(
        (module, shape) for module, shape in linears.items() if module.rpartition(".")[2] in kinds
    )
    prefix = f"base_model.model.{module}"
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "peft_type": "LORA",
            "r": 1,
            "lora_alpha": 1,
            "target_modules": [module.rpartition(".")[2]],
            "bias": "none",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
        }
        Path(folder, CONFIG).write_text(json.dumps(config), encoding="utf-8")
        tensors = {
            f"{prefix}.lora_A.weight": torch.zeros(1, in_features),
            f"{prefix}.lora_B.weight": torch.zeros(out_features, 1),
        }
        save_file(tensors, Path(folder, WEIGHTS))
        copy, sha256 = _keep(Located.at(Path(folder)), store)
    return AdapterVersion(NULL_NAME, sha256, copy, 1, (module.rpartition(".")[2],), (copy / WEIGHTS).stat().st_size)


def content_hash(folder: Path) -> str:
    """SHA-256 of an adapter: what `sha256sum adapter_config.json adapter_model.safetensors | sha256sum` prints."""
    lines = ""
    for filename in (CONFIG, WEIGHTS):
        with (folder / filename).open("rb") as file:
            lines += f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {filename}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def _package(name: str) -> Path:
    """The folder of an installed package."""
    try:
        return Path(str(resources.files(name))).resolve()
    except Exception as error:  # this imports the package, and a stranger's import can raise anything
        raise AdapterError(
            f"The package `{name}` can not be found: {type(error).__name__}: {error}",
            remedy="Give `package` the name of the package that holds the adapter, such as `__name__`.",
        ) from error


def _inside(root: Path, name: str) -> Path:
    """`root / name`, refusing to leave `root`, by `..` or by a symbolic link."""
    try:
        folder = (root / name).resolve()
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"Adapter reference `{name}` is no name of a folder: {error}", remedy="Mend the reference."
        ) from error
    if not folder.is_relative_to(root):
        raise AdapterError(
            f"Adapter reference `{name}` leads out of `{root}`.", remedy="Keep the adapter inside that folder."
        )
    return folder


def _fetched(reference: Reference, hub: Hub) -> Located:
    """An adapter on a model hub, in the hub's cache."""
    found = hub.snapshot(reference, FILES)
    return Located(found.folder, found.boundary, str(reference.at(found.commit)))


def _file(located: Located, filename: str) -> Path:
    """One of an adapter's files itself, links followed, refusing to leave the adapter's boundary."""
    path = located.folder / filename
    if not path.is_file():
        pickles = [file.name for file in located.folder.iterdir() if file.suffix in PICKLES]
        raise AdapterError(
            f"`{located.folder}` holds no `{filename}`"
            + (f", but the pickle `{pickles[0]}`, which could run any code." if pickles else "."),
            remedy="Save the adapter with PEFT's `save_pretrained(…, safe_serialization=True)`.",
        )
    real = path.resolve(strict=True)
    if not any(real.is_relative_to(folder) for folder in located.boundary):
        raise AdapterError(
            f"`{path}` is a symbolic link that leads out of {' and '.join(f'`{one}`' for one in located.boundary)}.",
            remedy="Put the file itself in the place of the link.",
        )
    return real


def _keep(located: Located, store: Path) -> tuple[Path, str]:
    """Copy the two files of an adapter to `store/<hash>`, atomically, unless the same content is there already."""
    files = {filename: _file(located, filename) for filename in (CONFIG, WEIGHTS)}
    store = store.expanduser() / "adapters"
    try:
        return _copy(files, store)
    except OSError as error:
        raise AdapterError(
            f"The adapter in `{located.folder}` can not be copied to `{store}`: {error}.",
            remedy="Make room there and let HLO write to it, or set HLO_CACHE_DIR to another folder.",
        ) from error


def _copy(files: Mapping[str, Path], store: Path) -> tuple[Path, str]:
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=store, prefix=".incoming-") as incoming:
        for filename, real in files.items():
            shutil.copyfile(real, Path(incoming, filename))
        sha256 = content_hash(Path(incoming))
        kept = store / sha256
        if kept.is_dir():
            if _intact(kept, sha256):
                return kept, sha256
            shutil.rmtree(kept)
        try:
            os.rename(incoming, kept)
        except OSError:
            if not _intact(kept, sha256):
                raise
        else:
            os.mkdir(incoming)  # so that the context manager finds what it made
    return kept, sha256


def _intact(kept: Path, sha256: str) -> bool:
    try:
        return content_hash(kept) == sha256
    except OSError:
        return False


def _read_config(copy: Path, folder: Path) -> dict[str, Any]:
    """Read and check adapter_config.json; `folder` is the place that the message names."""
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
    if type(config.get("lora_alpha")) not in (int, float) or not math.isfinite(config["lora_alpha"]):
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
        except re.error as error:
            raise AdapterError(
                f"{place}: `{key}` holds `{pattern}`, which is no pattern: {error}.", remedy="Save the adapter again."
            ) from error


def _check_tensors(
    weights: Path, folder: Path, config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]
) -> tuple[int, tuple[str, ...]]:
    """Check every tensor's name, shape and values. Returns the highest rank and the kinds of layer touched."""
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
        effect = effect or bool((pair["B"].float() @ pair["A"].float()).any())
    if not effect or not config["lora_alpha"]:
        raise AdapterError(f"{place} changes nothing: every update is zero.", remedy="Train it, or leave it out.")
    return max(_rank(module, config) for module in pairs), tuple(sorted({m.rpartition(".")[2] for m in pairs}))


def _rank(module: str, config: Mapping[str, Any]) -> int:
    """The rank of one layer; patterns match as in PEFT's `get_pattern_key`."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return int(rank)
    return int(config["r"])


def _targeted(module: str, targets: object) -> bool:
    """Whether PEFT would adapt `module`: `targets` is a pattern for the whole name, or a list of last parts."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, module) is not None
    return isinstance(targets, list) and any(module == one or module.endswith(f".{one}") for one in targets)
