"""Finds plugins by entry point and asks each what it offers; one that fails is refused by name, and the rest serve."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType

import pluggy

from hlo import hookspecs
from hlo.errors import PluginError
from hlo.records import Offer, Refusal, Specialty

GROUP = "hlo"


def installed() -> tuple[EntryPoint, ...]:
    """The entry points of the group `hlo`, by name; reads metadata only and imports nothing."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)))


def collect(points: Iterable[EntryPoint]) -> tuple[tuple[Offer, ...], tuple[Refusal, ...]]:
    """Import each plugin and ask it for its specialties."""
    offers: list[Offer] = []
    refusals: list[Refusal] = []
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for point in points:
        try:
            offers.append(_ask(manager, point))
        except PluginError as error:
            refusals.append(Refusal(point.name, None, error.message, error.remedy))
    return tuple(offers), tuple(refusals)


def _ask(manager: pluggy.PluginManager, point: EntryPoint) -> Offer:
    """Import, register and ask one plugin. Raises `PluginError`."""
    owner = point.dist.metadata["Name"] if point.dist else point.value
    if manager.has_plugin(point.name):
        raise PluginError(
            f"The entry point name `{point.name}` is taken twice; the second is from `{owner}`.",
            remedy="Uninstall one of the two packages, or rename the entry point.",
        )
    try:
        module = point.load()
    except (Exception, SystemExit) as error:  # a stranger's import can raise anything; the others must live on
        raise PluginError(
            f"Importing `{point.value}` failed: {type(error).__name__}: {error}",
            remedy=f"Reinstall or upgrade `{owner}`, or ask its author.",
        ) from error
    if not isinstance(module, ModuleType):
        raise PluginError(
            f"`{point.value}` is no module but a {type(module).__name__}.",
            remedy="Let the entry point name the module that holds the hooks.",
        )
    _check_hooks(module, point.value)
    try:
        manager.register(module, name=point.name)
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"A hook of `{point.value}` does not fit its specification: {error}",
            remedy="Give the hook the arguments that `hlo.hookspecs` names.",
        ) from error
    except ValueError as error:
        raise PluginError(
            f"`{point.value}` is registered already, under another entry point.",
            remedy=f"Remove the entry point `{point.name}` of `{owner}`.",
        ) from error
    impls = [i for i in manager.hook.hlo_specialties.get_hookimpls() if i.plugin_name == point.name]
    offered = _call(impls[0]) if impls else ()
    return Offer(point.name, owner, point.dist.version if point.dist else "", offered)


def _call(impl: pluggy.HookImpl) -> tuple[Specialty, ...]:
    """Call one implementation of `hlo_specialties` and check what it gives back."""
    try:
        offered = impl.function()
    except (Exception, SystemExit) as error:  # a stranger's hook can raise anything; the others must live on
        raise PluginError(
            f"`hlo_specialties` raised {type(error).__name__}: {error}",
            remedy="Mend the hook; it must return a list of `hlo.Specialty`.",
        ) from error
    if not isinstance(offered, list) or not all(isinstance(one, Specialty) for one in offered):
        got = type(offered).__name__
        if isinstance(offered, list):
            got = "a list with " + next(type(one).__name__ for one in offered if not isinstance(one, Specialty))
        raise PluginError(
            f"`hlo_specialties` must return a list of `hlo.Specialty`; it returned {got}.",
            remedy="Return a list, also for one specialty.",
        )
    return tuple(offered)


def _check_hooks(module: ModuleType, place: str) -> None:
    """Refuse what pluggy would silently ignore: misspelt, unmarked and asynchronous hooks."""
    known = {name for name in vars(hookspecs) if name.startswith("hlo_")}
    for name, value in vars(module).items():
        if not name.startswith("hlo_") or not callable(value):
            continue
        if name not in known:
            raise PluginError(
                f"`{place}.{name}` is not a hook of HLO.",
                remedy=f"The hooks are {', '.join(sorted(known))}; is it a misspelling?",
            )
        if not hasattr(value, "hlo_impl"):
            raise PluginError(f"`{place}.{name}` is not marked.", remedy="Put `@hlo.hookimpl` above it.")
        if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
            raise PluginError(f"`{place}.{name}` is asynchronous.", remedy="Hooks are plain functions: drop `async`.")


def read_examples(package: str, filename: str = "examples.toml") -> Mapping[str, tuple[str, ...]]:
    """Read a specialty's routing examples from a TOML file inside `package`: one array of questions per part.

    Raises `PluginError` when the file is missing, is not TOML, or holds anything but arrays of strings.
    """
    try:
        with resources.files(package).joinpath(filename).open("rb") as file:
            table = tomllib.load(file)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise PluginError(f"`{package}` holds no file `{filename}`.", remedy="Add it to the package's data.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginError(f"`{filename}` in `{package}` is not TOML: {error}.", remedy="Mend that line.") from error
    for part, questions in table.items():
        if not isinstance(questions, list) or not all(isinstance(one, str) for one in questions):
            raise PluginError(
                f"`{filename}` in `{package}`: `{part}` must be an array of strings.",
                remedy='Write `patients = ["…", "…"]`.',
            )
    return MappingProxyType({part: tuple(questions) for part, questions in table.items()})
