"""Plugins that do all that a plugin should not, written into a folder as if pip had installed them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.e2e.reference import ADAPTERS

_HEAD = "from hlo import Adapter, Embeddings, Sampling, Specialty, hookimpl\n"
_EXAMPLES = {"patients": ("is this hostile", "does this do harm")}


def _offer(name: str, **fields: str) -> str:
    """A module that offers one specialty; `fields` are Python expressions."""
    given = {"name": repr(name), "title": "'T'", "adapter": f"Adapter({name!r})", "examples": repr(_EXAMPLES)} | fields
    arguments = ", ".join(f"{field}={value}" for field, value in given.items())
    return f"{_HEAD}\n@hookimpl\ndef hlo_specialties():\n    return [Specialty({arguments})]\n"


def _hook(body: str) -> str:
    return f"{_HEAD}\n@hookimpl\ndef hlo_specialties():\n    {body}\n"


# What a plugin's module says, and what its refusal must speak of.
MODULES: dict[str, tuple[str, str]] = {
    "syntax": ("def broken(:\n", "SyntaxError"),
    "raises": ("1 / 0\n", "ZeroDivisionError"),
    "lonely": ("import no_such_library\n", "no_such_library"),
    "exits": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "kills": ("import os\nos._exit(7)\n", "ended the process (exit status 7)"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "signal SIGSEGV"),
    "hangs": ("import time\ntime.sleep(3600)\n", "`hlo_hostile_hangs` did not come back within 8 s"),
    "hangs_in_hook": (_hook("import time; time.sleep(3600)"), "`hlo_hostile_hangs_in_hook` did not come back"),
    "hook_raises": (_hook("raise ValueError('no examples today')"), "ValueError: no examples today"),
    "returns_none": (_hook("return None"), "it returned NoneType"),
    "returns_text": (_hook("return ['cardiology']"), "a list with str"),
    "misspelt": (f"{_HEAD}@hookimpl\ndef hlo_specialities():\n    return []\n", "hlo_specialities` is not a hook"),
    "unmarked": ("def hlo_specialties():\n    return []\n", "is not marked"),
    "asynchronous": (f"{_HEAD}@hookimpl\nasync def hlo_specialties():\n    return []\n", "is asynchronous"),
    "greedy": (f"{_HEAD}@hookimpl\ndef hlo_specialties(engine):\n    return []\n", "does not fit its specification"),
    "thief": (_offer("cardiology"), "taken by the plugin `cardiology`"),
    "reserved": (_offer("base"), "`base` can not be a specialty's name"),
    "shouting": (_offer("Chest Pain"), "`Chest Pain` can not be a specialty's name"),
    "untitled": (_offer("untitled", title="' '"), "has no title"),
    "mute": (_offer("mute", examples="{}"), "has no routing examples"),
    "mistyped": (_offer("mistyped", template="42"), "is malformed"),
    "hot": (_offer("hot", sampling="Sampling(temperature=9)"), "sampling.temperature"),
    "unclosed": (_offer("unclosed", template="'{{ question'"), "can not be rendered (line 1)"),
    "deaf": (_offer("deaf", template="'Say something.'"), "leaves the question out"),
    "burglar": (_offer("burglar", template="\"{{ ''.__class__.__mro__ }}{{ question }}\""), "unsafe"),
    "foreign": (
        _offer("foreign", adapter="Adapter('nephrology')", embeddings="Embeddings('other', {'p': [[1.0] * 384]})"),
        "encoder `other`",
    ),
    "lost": (_offer("lost", adapter="Adapter('nowhere')"), "`nowhere` was not found"),
    "climber": (_offer("climber", adapter="Adapter('../../etc', package='hlo')"), "leads out of"),
    "pathfinder": (_offer("pathfinder", adapter="Adapter('a/../b')"), "neither a name nor an absolute path"),
    "homeless": (_offer("homeless", adapter="Adapter('x', package='no_such_package')"), "no_such_package"),
    "remote": (_offer("remote", adapter="Adapter('hf://org/remote@main')"), "hf://org/remote@main"),
    "misaddressed": (_offer("misaddressed", adapter="Adapter('hf://org')"), "hf://org`"),
}


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def _link_file(folder: Path) -> None:
    outside = folder.parent.parent / "outside.safetensors"
    shutil.move(folder / "adapter_model.safetensors", outside)
    (folder / "adapter_model.safetensors").symlink_to(outside)


def _link_folder(folder: Path) -> None:
    outside = folder.parent.parent / "outside"
    shutil.move(folder, outside)
    folder.symlink_to(outside)


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _rank(folder: Path) -> None:
    _config(folder, r=128, lora_alpha=128)
    _weights(folder, lambda old: {k: v.repeat((16, 1) if ".lora_A." in k else (1, 16)) for k, v in old.items()})


# How a copy of a good adapter is spoiled, and what its refusal must speak of.
ADAPTERS_SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncate, "is damaged"),
    "pickled": (_pickle, "the pickle `adapter_model.bin`"),
    "linked_file": (_link_file, "link"),
    "linked_folder": (_link_folder, "leads out of"),
    "mistral": (lambda f: _config(f, base_model_name_or_path="mistralai/Mistral-7B-v0.3"), "`Mistral-7B-v0.3`"),
    "towering": (_rank, "rank 128 is above HLO_MAX_LORA_RANK=64"),
    "dora": (lambda f: _config(f, use_dora=True), "`use_dora`"),
    "no_json": (_no_json, "is not JSON"),
    "misshapen": (lambda f: _weights(f, lambda old: {k: v[:, :-1] for k, v in old.items()}), "has shape"),
    "elsewhere": (
        lambda f: _weights(f, lambda old: {k.replace("layers.0.", "layers.99."): v for k, v in old.items()}),
        "which the base model does not have",
    ),
    "zero": (lambda f: _weights(f, lambda old: {k: v * 0 for k, v in old.items()}), "every update is zero"),
    "not_a_number": (lambda f: _weights(f, lambda old: {k: v * float("nan") for k, v in old.items()}), "NaN"),
    "feeble": (
        lambda f: _weights(f, lambda old: {k: v.float() * 1e-6 for k, v in old.items()}),
        "log-probabilities differ",
    ),
}


def install(site: Path, adapters: Path) -> dict[str, str]:
    """Write all of them; what the refusal of each plugin must speak of, by its name."""
    site.mkdir()
    for name, (source, _) in MODULES.items():
        _write(site, name, source)
    for name, (spoil, _) in ADAPTERS_SPOILT.items():
        shutil.copytree(ADAPTERS / "nephrology", adapters / name)
        spoil(adapters / name)
        _write(site, name, _offer(name))
    return {f"hostile_{name}": said for name, (_, said) in (MODULES | ADAPTERS_SPOILT).items()}


def _write(site: Path, name: str, source: str) -> None:
    info = site / f"hlo_hostile_{name}-1.0.dist-info"
    info.mkdir()
    dashed = name.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hlo-hostile-{dashed}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hlo]\nhostile_{name} = hlo_hostile_{name}\n")
    (site / f"hlo_hostile_{name}.py").write_text(source, encoding="utf-8")
