"""Writes a new specialty's package: complete, installable and tested, with everything in it for its author to replace.

Nothing in it is a stub. The routing examples really route, and the adapter is a real one for the demonstration model,
with random weights: small enough that the model still speaks in words, large enough that HLO takes it for an adapter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from string import Template
from types import MappingProxyType

import numpy as np
from msgspec import Struct

from hlo import catalog, plugins
from hlo.errors import PluginError
from hlo.generation import adapters, base_model
from hlo.records import Adapter, Specialty

RANK = 4
KINDS = ("q_proj", "v_proj")
STRENGTH = 0.02
"""Standard deviation of lora_B's values. On the demonstration model, 0.02 moves log-probabilities of a prompt's tokens
by 1 to 2 nats at most, and costs 0.02 nats a token of an answer; from about 0.1 on, it speaks no sentences any more."""

# `{}` is the title. Any specialty could be asked these: they stand in for questions that only its author can write.
_STARTERS: Mapping[str, tuple[str, ...]] = {
    "patients": (
        "I was told to go to {}, what happens there?",
        "my doctor wants me seen in {} and i don't know why",
        "is what I have something for {}?",
        "how long is the wait for an appointment in {}",
        "what should i bring to my first visit in {}",
        "my mother was sent to {} and nobody told us what for",
        "do i need a letter from my own doctor for {}",
        "which questions should I ask in {} tomorrow?",
    ),
    "clinical": (
        "Which conditions belong to {}?",
        "Which symptoms are a reason for a referral to {}?",
        "Which tests are common in {}?",
        "Which treatments are usual in {}?",
        "What counts as an emergency in {}?",
        "Which diseases does {} treat in children?",
    ),
}
# No quotes, backslashes or braces: a title stands in Python, TOML, Jinja and Markdown alike. 60: the lines stay short.
_TITLE = re.compile(r"[^\W_](?:[\w ',.&()/-]{0,58}[\w)])?")
_FILES = (
    ".gitignore",
    "CHANGELOG.md",
    "README.md",
    "pyproject.toml",
    "src/{package}/__init__.py",
    "src/{package}/adapter/README.md",
    "src/{package}/examples.toml",
    "tests/conftest.py",
    "tests/test_{name}.py",
)


class Written(Struct, frozen=True):
    """A package that was written: its folder, and its files' paths in that folder, sorted."""

    folder: Path
    files: tuple[str, ...]


def write(name: str, title: str | None, output: Path) -> Written:
    """Write the package of the specialty `name` to a new folder in `output`, which is made when it is not there.

    `title` is what people read; None makes it from the name. Raises `PluginError` when the name or the title can not be
    used, the name is installed, or the folder can not be made; and `ModelError` without the demonstration model.
    """
    title = name.replace("_", " ").capitalize() if title is None else title.strip()
    _check(name, title)
    folder = output / f"hlo-{name.replace('_', '-')}"
    files = render(name, title)  # before anything is written
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    except FileExistsError as error:
        raise _occupied(Path(error.filename)) from error
    except OSError as error:
        raise PluginError(
            f"`{folder}` can not be written: {error.strerror}.", remedy="Choose another folder with `--output`."
        ) from error
    return Written(folder, tuple(sorted(files)))


def starter_examples(title: str) -> Mapping[str, tuple[str, ...]]:
    """The routing examples of a new package, by part. Every one that is still there is one that nobody has replaced."""
    subject = _subject(title)
    return MappingProxyType({part: tuple(form.format(subject) for form in forms) for part, forms in _STARTERS.items()})


def render(name: str, title: str) -> Mapping[str, bytes]:
    """Every file of the package, by its path in it. The same name and title always give the same bytes.

    Raises `ModelError` when the demonstration model, for which the adapter is made, is not there.
    """
    model = base_model.find("")
    values = {
        "name": name,
        "package": f"hlo_{name}",
        "distribution": f"hlo-{name.replace('_', '-')}",
        "title": title,
        "subject": _subject(title),
        "base": model.name,
        "rank": str(RANK),
        "alpha": str(2 * RANK),
        "kinds": ", ".join(f'"{kind}"' for kind in KINDS),
    } | {part: _array(questions) for part, questions in starter_examples(title).items()}
    paths = {path: path.format(**values) for path in _FILES}
    files = {paths[path]: _template(path).substitute(values).encode() for path in _FILES}
    adapter = f"src/hlo_{name}/adapter"
    return files | {
        "LICENSE": _license(),
        f"src/hlo_{name}/py.typed": b"",
        f"{adapter}/{adapters.CONFIG}": _config(model.name),
        f"{adapter}/{adapters.WEIGHTS}": _weights(name, model.linears),
    }


def _check(name: str, title: str) -> None:
    """Raise `PluginError` unless a package for `name` can be made, published and installed beside the others."""
    catalog.check_declaration(Specialty(name, title, Adapter("adapter")))
    if name.endswith("_"):
        raise PluginError(
            f"`{name}` ends in `_`, and no package's name may end so.",
            remedy=f"Call it `{name.rstrip('_')}`.",
        )
    if not _TITLE.fullmatch(title):
        raise PluginError(
            f"`{title[:64]}` can not be the title of `{name}`.",
            remedy="Use letters, digits, spaces and `',.&()/-`, at most 60 in all, and begin with a letter or digit.",
        )
    for point in plugins.installed():
        if point.name == name:
            raise PluginError(
                f"A plugin `{name}` is installed already, from "
                f"`{point.dist.metadata['Name'] if point.dist else point.value}`.",
                remedy="Choose another name, or uninstall that package first: of two, only one would be served.",
            )


def _occupied(place: Path) -> PluginError:
    return PluginError(
        f"`{place}` exists already, and nothing is overwritten.",
        remedy="Move it away, or choose another folder with `--output`.",
    )


def _subject(title: str) -> str:
    """The title as it stands inside a sentence: `Dermatology` becomes `dermatology`, and `ENT` stays."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _array(questions: tuple[str, ...]) -> str:
    """The lines of a TOML array; what JSON writes for such titles is TOML too."""
    return "\n".join(f"    {json.dumps(question, ensure_ascii=False)}," for question in questions)


def _template(path: str) -> Template:
    """The template of one file. Its name ends so that no tool takes it for a module, a project or a list to obey."""
    place = path.format(package="package", name="name").removeprefix(".")
    return Template(resources.files(__name__).joinpath(f"templates/{place}.template").read_text(encoding="utf-8"))


def _license() -> bytes:
    """HLO's own licence, from its metadata: a wheel keeps it in `licenses/` (PEP 639). Raises `PluginError`."""
    text = metadata.distribution("hlo").read_text("licenses/LICENSE")
    if not text:
        raise PluginError("The installed HLO holds no licence to copy.", remedy="Reinstall HLO from its wheel.")
    return text.encode()


def _config(base: str) -> bytes:
    """PEFT's configuration of the adapter."""
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(KINDS),
        "task_type": "CAUSAL_LM",
    }
    return f"{json.dumps(config, indent=2)}\n".encode()


def _weights(name: str, linears: Mapping[str, tuple[int, int]]) -> bytes:
    """Random LoRA matrices in PEFT's layout, as float32 safetensors; the specialty's name is the seed."""
    from safetensors.numpy import save

    random = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    tensors = {}
    for module, (out_features, in_features) in linears.items():
        if module.rpartition(".")[2] not in KINDS:
            continue
        a = random.standard_normal((RANK, in_features)) / in_features**0.5
        b = random.standard_normal((out_features, RANK)) * STRENGTH
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
    data: bytes = save(tensors, metadata={"format": "pt"})
    return data
