"""What is examined: a plugin as source, as a wheel, or as it is installed.

A plugin that is not installed is given metadata and a place on the import path for as long as it is examined, so that
HLO finds and imports it exactly as it would an installed one. Where it is installed as well, the copy that was named
is the one that is imported.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import Distribution, EntryPoint, PathDistribution
from pathlib import Path
from typing import Any, Literal, cast

from msgspec import Struct

from hlo import plugins
from hlo.errors import PluginError
from hlo.testing import wheel

_SDISTS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_LAYOUTS = ("src", ".", "lib", "python")  # where a project's code lies; hatchling, setuptools and others look alike


class Subject(Struct, frozen=True):
    """A plugin's package that can be imported now. `place` says for people where it was found.

    `code` are the folders that were put on the import path, none for an installed plugin. `dynamic` are the fields of
    its metadata that only a build decides. `archive` is the wheel's file.
    """

    kind: Literal["source", "wheel", "installed"]
    place: str
    distribution: Distribution
    points: tuple[EntryPoint, ...]
    code: tuple[Path, ...] = ()
    dynamic: frozenset[str] = frozenset()
    archive: Path | None = None

    @property
    def name(self) -> str:
        """The name of the package, as its metadata has it; empty when that has none."""
        return field(self.distribution, "Name")

    @property
    def version(self) -> str:
        """The version of the package; empty when its metadata has none, or only a build decides it."""
        return "" if "version" in self.dynamic else field(self.distribution, "Version")

    @property
    def plugins(self) -> tuple[str, ...]:
        """The names of its entry points."""
        return tuple(point.name for point in self.points)

    def others(self) -> tuple[EntryPoint, ...]:
        """The entry points of all other installed plugins."""
        return tuple(point for point in plugins.installed() if _owner(point) != normal(self.name))


@contextmanager
def find(path_or_name: str | Path) -> Iterator[Subject]:
    """The plugin in a source folder or a wheel, or the installed one of that name; it can be imported in the block.

    A name is that of an entry point or of a package; all entry points of the package are examined. Raises
    `PluginError` when there is no such plugin.
    """
    given = str(path_or_name)
    path = Path(given).expanduser()
    bare = isinstance(path_or_name, str) and path.name == given and not given.endswith((".whl", *_SDISTS))
    if bare and not (path / "pyproject.toml").is_file() and (points := _installed(given)):
        place = f"the installed package {_owner(points[0])}"
        yield Subject("installed", place, cast("Distribution", points[0].dist), points)
        return
    with ExitStack() as stack:
        if path.is_dir():
            subject = _source(path.resolve(), stack)
        elif path.is_file() and path.suffix == ".whl":
            subject = _wheel(path.resolve(), stack)
        elif given.endswith(_SDISTS):
            raise PluginError(
                f"`{given}` is a source distribution, and its entry points are known only once it is built.",
                remedy="Build a wheel of it (`python -m pip wheel --no-deps FILE`), or unpack it and name the folder.",
            )
        else:
            raise _nothing(given, bare=bare, exists=path.exists())
        stack.enter_context(_importable(subject))
        yield subject


def field(distribution: Distribution, name: str) -> str:
    """A field of a package's metadata; empty when it is not there."""
    told = distribution.metadata
    return told[name].strip() if name in told else ""


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _owner(point: EntryPoint) -> str:
    return normal(field(point.dist, "Name")) if point.dist else ""


def _installed(name: str) -> tuple[EntryPoint, ...]:
    """All entry points of the installed package that bears the name, or has an entry point that bears it."""
    everything = [point for point in plugins.installed() if point.dist]
    owners = [_owner(point) for point in everything if point.name == name]
    owners += [_owner(point) for point in everything if _owner(point) == normal(name)]
    return tuple(point for point in everything if owners and _owner(point) == owners[0])


def _nothing(given: str, *, bare: bool, exists: bool) -> PluginError:
    if exists:
        return PluginError(
            f"`{given}` is neither a folder nor a wheel.",
            remedy="Name a source folder, a file that ends in `.whl`, or an installed plugin.",
        )
    if not bare:
        return PluginError(f"There is no `{given}`.", remedy="Check the path.")
    names = sorted({name for point in plugins.installed() for name in (point.name, _owner(point)) if name})
    near = difflib.get_close_matches(given, names, n=3)
    return PluginError(
        f"`{given}` is no file or folder here, and no plugin of that name is installed.",
        remedy=f"Did you mean {' or '.join(f'`{one}`' for one in near)}?"
        if near
        else f"Installed: {', '.join(sorted({point.name for point in plugins.installed()})) or 'none'}.",
    )


def _wheel(file: Path, stack: ExitStack) -> Subject:
    """Unpack a wheel to a temporary folder."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hlo-wheel-"))).resolve()
    distribution = wheel.unpack(file, folder)
    code = (folder, *sorted(folder.glob("*.data/purelib")), *sorted(folder.glob("*.data/platlib")))
    return Subject("wheel", str(file), distribution, _points(distribution, str(file)), code, archive=file)


def _source(folder: Path, stack: ExitStack) -> Subject:
    """Read a project's metadata from pyproject.toml, and write it down as an installer would."""
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise PluginError(
            f"`{folder}` holds no pyproject.toml.",
            remedy="Name the folder of a project that has one; `hlo plugins new` writes one.",
        )
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PluginError(f"`{file}` is not TOML: {error}.", remedy="Mend that line.") from error
    if not isinstance(project, dict) or not isinstance(project.get("name"), str) or not project["name"].strip():
        raise PluginError(f"`{file}` has no table `[project]` with a name.", remedy="Write one, after PEP 621.")
    entries = project.get("entry-points")
    entries = entries.get(plugins.GROUP, {}) if isinstance(entries, dict) else {}
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise PluginError(
            f"`{file}`: `[project.entry-points.{plugins.GROUP}]` must map names to modules.",
            remedy='Write `joints = "hlo_joints"`.',
        )
    dynamic = project.get("dynamic")
    known = frozenset(str(one) for one in dynamic) if isinstance(dynamic, list) else frozenset()
    info = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hlo-source-", suffix=".dist-info")))
    (info / "METADATA").write_text(_metadata(project, folder), encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "".join([f"[{plugins.GROUP}]\n", *(f"{_line(name)} = {_line(value)}\n" for name, value in entries.items())]),
        encoding="utf-8",
    )
    distribution = PathDistribution(info)
    points = _points(distribution, str(file))
    return Subject("source", str(folder), distribution, points, _code(folder, points), known)


def _metadata(project: dict[str, Any], folder: Path) -> str:
    """The METADATA file of a project, with all that the checks look at. A `dynamic` version is 0 until it is built."""
    license_ = project.get("license")
    old = license_ if isinstance(license_, dict) else {}
    readme = project.get("readme")
    if isinstance(readme, dict):
        readme = readme.get("file")
    dependencies = project.get("dependencies")
    fields = [
        ("Metadata-Version", "2.4"),
        ("Name", project["name"]),
        ("Version", project.get("version") or "0"),
        ("Summary", project.get("description")),
        ("License-Expression", license_ if isinstance(license_, str) else None),
        ("License", old.get("text") or old.get("file")),
        ("Requires-Python", project.get("requires-python")),
        *(("Requires-Dist", one) for one in (dependencies if isinstance(dependencies, list) else [])),
    ]
    lines = [f"{name}: {_line(value)}" for name, value in fields if isinstance(value, str) and value.strip()]
    text = ""
    if isinstance(readme, str) and (folder / readme).is_file():
        text = (folder / readme).read_text(encoding="utf-8", errors="replace")
    return "\n".join([*lines, "", text])


def _line(text: str) -> str:
    return " ".join(text.split())


def _points(distribution: Distribution, place: str) -> tuple[EntryPoint, ...]:
    points = tuple(sorted(distribution.entry_points.select(group=plugins.GROUP), key=lambda point: point.name))
    if not points:
        raise PluginError(
            f"`{place}` has no entry point in the group `{plugins.GROUP}`, so HLO would never find it.",
            remedy=f'Write `[project.entry-points.{plugins.GROUP}]` and `joints = "hlo_joints"` in its pyproject.toml.',
        )
    for point in points:
        if not point.pattern.match(point.value):
            raise PluginError(
                f"`{place}`: the entry point `{point.name}` names `{point.value}`, which can be no module.",
                remedy='Write the name by which Python imports it, such as `joints = "hlo_joints"`.',
            )
    return points


def _code(folder: Path, points: Sequence[EntryPoint]) -> tuple[Path, ...]:
    """The folders that hold the modules of the entry points; where none is there, importing them will tell."""
    packages = {point.module.partition(".")[0] for point in points}
    found = []
    for layout in _LAYOUTS:
        place = (folder / layout).resolve()
        here = {name for name in packages if (place / name).is_dir() or (place / f"{name}.py").is_file()}
        if here:
            found.append(place)
            packages -= here
    return tuple(found) or (folder,)


@contextmanager
def _importable(subject: Subject) -> Iterator[None]:
    """Put the subject's code before all else on the import path, and undo that, with all that was imported of it."""
    before, path = plugins.forget(subject.points), [str(folder) for folder in subject.code]
    sys.path[:0] = path
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in path:
            if folder in sys.path:
                sys.path.remove(folder)
        plugins.forget(subject.points)
        sys.modules.update(before)
        importlib.invalidate_caches()
