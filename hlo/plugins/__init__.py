"""Finds plugins by entry point and asks each what it offers; one that fails is refused by name, and the rest serve."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pluggy
from msgspec import Struct

from hlo import hookspecs
from hlo.errors import PluginError, SettingsError
from hlo.plugins.examples import read_examples
from hlo.plugins.hooks import Hook, Hooks
from hlo.records import Offer, Refusal, Specialty

__all__ = ["GROUP", "Discovery", "Hooks", "Watch", "choose", "discover", "forget", "installed", "read_examples"]

GROUP = "hlo"
TIMEOUT_S = 20.0

Watch = Callable[[str], AbstractContextManager[object]]
"""Is entered, with the plugin's name, around the import of each plugin and the question what it offers."""


class Discovery(Struct, frozen=True):
    """What the plugins offered, which of them were refused, and the hooks of those that were not.

    `off` are the names of those that HLO_PLUGINS leaves out.
    """

    offers: tuple[Offer, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    hooks: Hooks = Hooks()
    off: tuple[str, ...] = ()


def installed() -> tuple[EntryPoint, ...]:
    """The entry points of the group `hlo`, by name, as they are now; reads metadata only and imports nothing."""
    importlib.invalidate_caches()
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)))


def choose(
    points: Iterable[EntryPoint], chosen: str
) -> tuple[tuple[EntryPoint, ...], tuple[str, ...], tuple[str, ...]]:
    """Apply HLO_PLUGINS: the entry points to load, the names left out, and the names that nothing installed bears.

    `chosen` has names with commas between; `-name` leaves one out, and a name without it leaves out all that are not
    named. Raises `SettingsError` when it contradicts itself.
    """
    points = tuple(points)
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    denied = {word.removeprefix("-").strip() for word in words if word.startswith("-")}
    allowed = {word for word in words if not word.startswith("-")}
    if denied & allowed or "" in denied:
        raise SettingsError(
            f"HLO_PLUGINS={chosen} says yes and no to {', '.join(sorted(denied & allowed))}."
            if denied & allowed
            else f"HLO_PLUGINS={chosen} has a `-` without a name.",
            remedy="Name each plugin once, with `-` before those that are to be left out.",
        )
    kept = tuple(point for point in points if point.name not in denied and (not allowed or point.name in allowed))
    names = {point.name for point in points}
    return kept, tuple(sorted(names - {point.name for point in kept})), tuple(sorted((denied | allowed) - names))


def discover(
    points: Iterable[EntryPoint],
    *,
    chosen: str = "",
    timeout_s: float = TIMEOUT_S,
    fresh: bool = False,
    watch: Watch = nullcontext,
) -> Discovery:
    """Import each plugin that `chosen` (HLO_PLUGINS) does not leave out, and ask it for its specialties.

    Each is first tried in a process of its own, for `timeout_s` seconds at most. With `fresh`, packages that were
    imported before are imported anew, since they may have been upgraded. Raises `SettingsError`.
    """
    from hlo.plugins import trial

    kept, off, unknown = choose(points, chosen)
    refusals = [
        Refusal(
            name,
            None,
            f"HLO_PLUGINS names `{name}`, and no plugin of that name is installed.",
            "Install it, or mend the name: `hlo plugins list` shows what is installed.",
        )
        for name in unknown
    ]
    sound = tuple(point for point in kept if point.pattern.match(point.value))
    refusals += [
        Refusal(
            point.name,
            None,
            f"The entry point `{point.name}` names `{point.value}`, which can be no module.",
            'Let it name a module as Python imports it, such as `joints = "hlo_joints"`.',
        )
        for point in kept
        if point not in sound
    ]
    kept = sound
    if fresh:
        forget(kept)
    modules = [point.module for point in kept]
    failures = trial.run(modules, timeout_s)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    offers: list[Offer] = []
    for number, point in enumerate(kept):
        try:
            with watch(point.name):
                if number in failures:
                    raise PluginError(
                        f"`{point.module}` {failures[number]} when it was imported and asked for its specialties.",
                        remedy="Do no work at import: no network, no model. HLO_PLUGIN_TIMEOUT_S gives it more time.",
                    )
                offers.append(_ask(manager, point))
        except PluginError as error:
            refusals.append(Refusal(point.name, None, error.message, error.remedy))
    return Discovery(tuple(offers), tuple(refusals), _hooks(manager, [offer.plugin for offer in offers]), off)


def forget(points: Iterable[EntryPoint]) -> dict[str, ModuleType]:
    """Forget the modules of plugins' packages, so that they are imported anew; returns what was forgotten, by name.

    What has been taken from them lives on.
    """
    packages = {point.module.partition(".")[0] for point in points} - {"hlo"}
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in packages}


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
    return Offer(point.name, owner, point.dist.version if point.dist else "", offered, _origin(point))


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
            raise PluginError(
                f"`{place}.{name}` is asynchronous: HLO would get a coroutine from it, and no answer.",
                remedy="Hooks are plain functions: drop `async`. HLO calls them outside its event loop.",
            )


def _hooks(manager: pluggy.PluginManager, plugins: Sequence[str]) -> Hooks:
    """The hooks of the plugins that were taken, beside `hlo_specialties`."""

    def of(name: str) -> tuple[Hook, ...]:
        impls = {impl.plugin_name: impl for impl in getattr(manager.hook, name).get_hookimpls()}
        found = [impls[plugin] for plugin in sorted(plugins) if plugin in impls]
        return tuple(Hook(impl.plugin_name, impl.function, tuple(impl.argnames)) for impl in found)

    return Hooks(of("hlo_encoder"), of("hlo_engine"), of("hlo_question"), of("hlo_answer"))


def _origin(point: EntryPoint) -> str:
    """Where a plugin's package was installed from (PEP 610); empty for an index, or when nobody wrote it down."""
    try:
        told = json.loads((point.dist and point.dist.read_text("direct_url.json")) or "{}")
        url = str(told.get("url", ""))
        if "vcs_info" in told:
            return f"{told['vcs_info']['vcs']}+{url}@{told['vcs_info']['commit_id']}"
        return f"editable {url}" if told.get("dir_info", {}).get("editable") else url
    except (ValueError, KeyError, AttributeError, TypeError):
        return "unreadable direct_url.json"
