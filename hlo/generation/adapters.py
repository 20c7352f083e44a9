"""Finds adapters, has every tensor of them checked, and keeps immutable copies named by content hash.

An engine accepts adapters that are half wrong and then answers with garbage, or dies (vLLM issues #34186, #48352), so
nothing reaches it that `lora_files` has not read in full.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from msgspec import Struct

from hlo.errors import AdapterError
from hlo.generation.lora_files import CONFIG as CONFIG
from hlo.generation.lora_files import WEIGHTS as WEIGHTS
from hlo.generation.lora_files import check_tensors, read_config
from hlo.hub import SCHEME, Hub, Reference
from hlo.records import Adapter, AdapterVersion

CARD = "README.md"
FILES = (CONFIG, WEIGHTS, CARD)  # what is fetched of an adapter on a model hub
CARD_BYTES = 1 << 16  # what is kept of a card, at most
NULL_NAME = "null"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")


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
    config = read_config(copy, folder)
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
    rank, modules = check_tensors(copy / WEIGHTS, folder, config, linears)
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


def card(adapter: AdapterVersion) -> str | None:
    """The card that came with an adapter, a README.md in Markdown; None where none did."""
    try:
        return (adapter.path / CARD).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def content_hash(folder: Path) -> str:
    """SHA-256 of an adapter: what `sha256sum adapter_config.json adapter_model.safetensors | sha256sum` prints."""
    lines = ""
    for filename in (CONFIG, WEIGHTS):
        with (folder / filename).open("rb") as file:
            lines += f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {filename}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def check_copy(version: AdapterVersion) -> None:
    """Raise `AdapterError` unless the kept copy of an adapter is still what was checked."""
    if not _intact(version.path, version.sha256):
        raise AdapterError(
            f"The checked copy of `{version.name}` in `{version.path}` is gone or was changed.",
            remedy=f"Reload the specialties: that copies it anew from `{version.source}`.",
        )


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
        copy, sha256 = _copy(files, store)
        _keep_card(located, copy)
    except OSError as error:
        raise AdapterError(
            f"The adapter in `{located.folder}` can not be copied to `{store}`: {error}.",
            remedy="Make room there and let HLO write to it, or set HLO_CACHE_DIR to another folder.",
        ) from error
    return copy, sha256


def _keep_card(located: Located, copy: Path) -> None:
    """Keep the card beside the copy, as it is now: the hash says nothing of it. One that leads elsewhere is none."""
    try:
        text = _file(located, CARD).read_bytes()[:CARD_BYTES]
    except AdapterError:
        (copy / CARD).unlink(missing_ok=True)
        return
    with tempfile.NamedTemporaryFile(dir=copy.parent, prefix=".card-", delete=False) as incoming:
        incoming.write(text)
    os.replace(incoming.name, copy / CARD)  # at once: a server that shares the store may be reading it


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
