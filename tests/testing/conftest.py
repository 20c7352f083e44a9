"""Plugins written to folders, good ones and bad ones, with nothing installed beside them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from hlo import plugins
from hlo.settings import Settings

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from tests.conftest import MakeAdapter

PYPROJECT = """\
[project]
name = "hlo-joints"
version = "1.2.3"
description = "Joints for HLO."
readme = "README.md"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["hlo"]

[project.entry-points.hlo]
joints = "hlo_joints"
"""
EXAMPLES = tuple(
    f"{joint} {feeling} {when}"
    for joint in ("knee", "hip", "wrist", "elbow")
    for feeling in ("aches", "swells", "cracks", "burns")
    for when in ("mornings", "walking", "resting", "nights")
)
CODE = f"""\
from hlo import Adapter, Question, Sampling, Specialty, hookimpl
from hlo.records import Screening

EXAMPLES = {EXAMPLES!r}


def specialty(name="joints", title="Joints", adapter=Adapter("adapter", __name__), **others):
    others = {{
        "description": "Joints.",
        "template": "Plainly: {{{{ question }}}}",
        "examples": {{"patients": EXAMPLES}},
        "sampling": Sampling(max_tokens=20),
    }} | others
    return Specialty(name, title, adapter, **others)


@hookimpl
def hlo_specialties():
    return [specialty()]
"""
CARD = "---\nlicense: apache-2.0\ntags:\n- lora\n---\n\n# Joints\n"


INSTALLED = plugins.installed


class Project(Protocol):
    """How tests ask for a plugin's source: `code` is its module, `more` is written to the end of it."""

    def __call__(self, *, code: str = ..., more: str = ..., pyproject: str = ..., flat: bool = ...) -> Path:
        """Write it and return its folder."""


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin is installed, but for what a test installs."""
    monkeypatch.setattr(
        plugins, "installed", lambda: tuple(one for one in INSTALLED() if one.value.startswith("hlo_test_"))
    )


@pytest.fixture
def project(tmp_path: Path, make_adapter: MakeAdapter) -> Project:
    """Write a plugin with an adapter for the tiny model; nothing is wrong with it, unless a test changes that."""

    def write(*, code: str = CODE, more: str = "", pyproject: str = PYPROJECT, flat: bool = False) -> Path:
        folder = tmp_path / "hlo-joints"
        package = folder / ("." if flat else "src") / "hlo_joints"
        package.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
        (folder / "README.md").write_text("# Joints\n", encoding="utf-8")
        (package / "__init__.py").write_text(f"{code}\n{more}", encoding="utf-8")
        make_adapter(package / "adapter")
        (package / "adapter" / "README.md").write_text(CARD, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[..., Path]:
    """Write a wheel by hand, of the code above; `members` come before its own files."""

    def write(members: dict[str | zipfile.ZipInfo, str] | None = None, *, info: bool = True) -> Path:
        file = tmp_path / "hlo_joints-1.2.3-py3-none-any.whl"
        metadata = "Metadata-Version: 2.4\nName: hlo-joints\nVersion: 1.2.3\nSummary: Joints.\n\nRead me.\n"
        own: dict[str | zipfile.ZipInfo, str] = {"hlo_joints/__init__.py": CODE}
        if info:
            own["hlo_joints-1.2.3.dist-info/METADATA"] = metadata
            own["hlo_joints-1.2.3.dist-info/entry_points.txt"] = "[hlo]\njoints = hlo_joints\n"
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in ((members or {}) | own).items():
                archive.writestr(name, text)
        return file

    return write


@pytest.fixture
def settings(tiny_model: BaseModel, tmp_path: Path, clean_environment: Path) -> Settings:
    """The tiny model, an adapter folder of this test's own, and the engine that starts soonest."""
    assert clean_environment
    return Settings(
        model=str(tiny_model.folder),
        adapter_path=tmp_path / "adapters",
        cache_dir=tmp_path / "cache",
        device="cpu",
        engine="transformers",
        log_level="error",
        background=False,  # the tests' questions are of few words, and can be reckoned by hand among each other
    )
