"""What is examined: found as source, wheel or installed plugin, and gone without a trace afterwards."""

from __future__ import annotations

import importlib
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hlo import plugins as all_plugins
from hlo.errors import PluginError
from hlo.testing.subject import Subject, field, find
from tests.testing.conftest import CODE, PYPROJECT, Project

if TYPE_CHECKING:
    from tests.conftest import Plugins


def specialties(subject: Subject) -> list[str]:
    found = all_plugins.discover(subject.points)
    assert found.refusals == ()
    return [one.title for offer in found.offers for one in offer.specialties]


@pytest.mark.parametrize("flat", [False, True])
def test_source(flat: bool, project: Project) -> None:
    """A source folder is importable in the block, by its own metadata, whether its code is in `src` or beside."""
    folder = project(flat=flat)
    path = list(sys.path)
    with find(folder) as subject:
        assert (subject.kind, subject.name, subject.version) == ("source", "hlo-joints", "1.2.3")
        assert subject.plugins == ("joints",)
        assert field(subject.distribution, "License-Expression") == "Apache-2.0"
        assert field(subject.distribution, "Requires-Dist") == "hlo"
        assert specialties(subject) == ["Joints"]
    assert sys.path == path
    assert "hlo_joints" not in sys.modules


def test_metadata_can_not_be_forged(project: Project) -> None:
    """A line break in a field makes no other field."""
    folder = project(pyproject=PYPROJECT.replace('"Joints for HLO."', '"""One\nLicense: none"""'))
    with find(folder) as subject:
        assert field(subject.distribution, "Summary") == "One License: none"
        assert field(subject.distribution, "License") == ""


def test_names_lead_nowhere(project: Project, tmp_path: Path) -> None:
    """A project's name is no path: nothing is written where it leads."""
    name = tmp_path / "elsewhere"
    with find(project(pyproject=PYPROJECT.replace('"hlo-joints"', f'"{name}"'))) as subject:
        assert subject.name == str(name)
        assert not list(tmp_path.glob("elsewhere*"))


def test_what_a_build_decides(project: Project) -> None:
    """A dynamic version is told as such, and is no version."""
    folder = project(pyproject=PYPROJECT.replace('version = "1.2.3"', 'dynamic = ["version"]'))
    with find(folder) as subject:
        assert (subject.dynamic, subject.version) == (frozenset({"version"}), "")


def test_wheel(wheel: Callable[..., Path]) -> None:
    """A wheel is unpacked for the time of the block."""
    with find(wheel()) as subject:
        assert (subject.kind, subject.name, subject.version) == ("wheel", "hlo-joints", "1.2.3")
        assert specialties(subject) == ["Joints"]
        (folder,) = subject.code
        assert folder.is_dir()
    assert not folder.exists()


def test_a_damaged_wheel(wheel: Callable[..., Path]) -> None:
    """A wheel whose compressed bytes make no sense is refused."""
    member = zipfile.ZipInfo("damaged.txt")
    member.compress_type = zipfile.ZIP_DEFLATED
    file = wheel({member: "word " * 100})
    start = len("damaged.txt") + 30  # a member's header has 30 bytes and its name
    held = bytearray(file.read_bytes())
    held[start : start + 4] = b"\xff" * 4
    file.write_bytes(held)
    with pytest.raises(PluginError, match="can not be unpacked"), find(file):
        pass


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("../escaped.txt", "leads out"),
        ("hlo_joints/../../escaped.txt", "leads out"),
        ("..\\escaped.txt", "leads out"),
        ("/tmp/escaped.txt", "leads out"),  # noqa: S108 - nothing is written there
        ("C:/escaped.txt", "leads out"),
        (link("hlo_joints/link"), "symbolic link"),
    ],
)
def test_members_that_escape(member: str | zipfile.ZipInfo, said: str, wheel: Callable[..., Path]) -> None:
    """A wheel with a member that leads elsewhere is refused, and nothing of it is unpacked."""
    file = wheel({member: "/etc/passwd"})
    with pytest.raises(PluginError, match=said), find(file):
        pass


@pytest.mark.parametrize("name", ["heart", "hlo-test-heart", "hlo_test.heart"])
def test_installed(name: str, plugins: Plugins) -> None:
    """An installed plugin is found by its entry point's name, and by its package's, however that is written."""
    plugins("heart", "heart", reference="heart")
    plugins("brain", "brain", reference="brain")
    with find(name) as subject:
        assert (subject.kind, subject.name, subject.version) == ("installed", "hlo-test-heart", "1.5")
        assert subject.plugins == ("heart",)
        assert [point.name for point in subject.others()] == ["brain"]


def test_the_path_wins(plugins: Plugins, project: Project) -> None:
    """Where the same plugin is installed, the copy at the path is imported, and afterwards the installed one again."""
    plugins("heart", "heart", reference="heart")
    before = importlib.import_module("hlo_test_heart")
    folder = project(
        pyproject=PYPROJECT.replace("hlo-joints", "hlo-test-heart").replace("hlo_joints", "hlo_test_heart")
    )
    (folder / "src" / "hlo_test_heart.py").write_text(CODE, encoding="utf-8")
    with find(folder) as subject:
        assert specialties(subject) == ["Joints"]
        assert subject.others() == ()
    assert importlib.import_module("hlo_test_heart") is before


def test_several_entry_points(project: Project) -> None:
    """All entry points of a package are examined."""
    with find(project(pyproject=f'{PYPROJECT}bones = "hlo_joints.bones"\n')) as subject:
        assert subject.plugins == ("bones", "joints")


@pytest.mark.parametrize(
    ("pyproject", "said"),
    [
        ("[project", "is not TOML"),
        ("[tool.x]\n", "no table `\\[project\\]`"),
        ('[project]\nname = "hlo-joints"\n', "no entry point"),
        ('[project]\nname = "hlo-joints"\n[project.entry-points]\nhlo = "hlo_joints"\n', "must map names"),
        ('[project]\nname = "hlo-joints"\n[project.entry-points.hlo]\njoints = 3\n', "must map names"),
        (PYPROJECT.replace('"hlo_joints"', '"hlo-joints"'), "`hlo-joints`, which can be no module"),
    ],
)
def test_projects_that_are_none(pyproject: str, said: str, project: Project) -> None:
    """A source folder without a plugin is refused, with what is missing."""
    folder = project(pyproject=pyproject)
    with pytest.raises(PluginError, match=said) as caught, find(folder):
        pass
    assert caught.value.remedy


def test_nothing_of_that_name(plugins: Plugins, tmp_path: Path) -> None:
    """What is neither a file nor installed is refused, with names that are like it; so is what is no plugin."""
    plugins("cardiology", "cardiology", reference="cardiology")
    (tmp_path / "file.txt").write_text("", encoding="utf-8")
    (tmp_path / "broken.whl").write_text("", encoding="utf-8")
    cases = {
        "cardiolgy": "Did you mean `cardiology`",
        "zzz": "Installed: cardiology",
        str(tmp_path / "nowhere"): "Check the path",
        str(tmp_path): "holds no pyproject.toml",
        str(tmp_path / "file.txt"): "neither a folder nor a wheel",
        str(tmp_path / "broken.whl"): "can not be unpacked",
        "hlo_joints-1.0.tar.gz": "is a source distribution",
    }
    for given, said in cases.items():
        with pytest.raises(PluginError) as caught, find(given):
            pass
        assert said in str(caught.value)


def test_a_wheel_without_metadata(wheel: Callable[..., Path]) -> None:
    """A wheel without metadata is refused."""
    with pytest.raises(PluginError, match=r"0 `\.dist-info` folders"), find(wheel(info=False)):
        pass
