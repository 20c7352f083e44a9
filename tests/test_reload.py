"""Reloading: what is installed now is served, and what was begun is finished as it began."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from hlo import assemble, plugins
from hlo.assemble import Runtime
from hlo.catalog import Catalog, Entry
from hlo.edition import Edition
from hlo.errors import CalibrationError, HLOError, PluginError
from hlo.plugins import Hooks
from hlo.plugins.hooks import Hook
from hlo.records import Adapter, AdapterVersion, Answer, Embeddings, Question, Refusal, Screening, Specialty, Turn
from hlo.reload import Reloaded, Reloader
from hlo.routing import bank
from hlo.routing.background import Background
from hlo.settings import Settings
from hlo.testing import EchoEngine
from tests.conftest import EXAMPLES, make_version

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from tests.conftest import MakeParts, Parts

pytestmark = pytest.mark.usefixtures("clean_environment")


def entry(name: str, adapter: str = "", **fields: Any) -> Entry:
    """An entry as the fixture's parts have it; `adapter` is any other content of the adapter."""
    version = make_version(adapter or name)
    version = AdapterVersion(name, version.sha256, version.path, 8, ("q_proj",), 1024)
    given: dict[str, Any] = {"examples": {"patients": EXAMPLES.get(name, ("skin rash itch",))}} | fields
    specialty = Specialty(name, name.title(), Adapter(name), f"{name}: {{{{ question }}}}", **given)
    return Entry(specialty, version, f"plugin-{name}", f"hlo-{name}", "1.2.3")


class World:
    """What is installed, as the reloader finds it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entries = [entry(name) for name in EXAMPLES]
        self.refusals: tuple[Refusal, ...] = ()
        self.hooks = Hooks()
        self.error: HLOError | None = None
        monkeypatch.setattr(assemble, "collect", self.collect)
        monkeypatch.setattr(plugins, "installed", self.installed)

    def collect(self, *_: Any, fresh: bool, **__: Any) -> tuple[Catalog, Hooks]:
        """What is installed now."""
        assert fresh
        if self.error is not None:
            raise self.error
        return Catalog({one.specialty.name: one for one in self.entries}, self.refusals), self.hooks

    def installed(self) -> tuple[EntryPoint, ...]:
        """The entry points of all plugins that are installed, refused or not."""
        from importlib.metadata import EntryPoint

        names = {one.plugin for one in self.entries} | {one.plugin for one in self.refusals if one.plugin != "ghost"}
        return tuple(EntryPoint(name, name, "hlo") for name in sorted(names))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """What is installed: what the fixture's parts serve, until a test changes it."""
    return World(monkeypatch)


def made(parts: Parts) -> tuple[Runtime, Reloader]:
    """A runtime of these parts, and its reloader."""
    runtime = parts.runtime(Settings(background=False, cache_dir=Path("cache")))
    return runtime, Reloader(runtime)


def engine_names(entries: Iterable[Entry]) -> set[str]:
    return {one.adapter.engine_name for one in entries}


async def ask(runtime: Runtime, question: str, **fields: Any) -> Answer:
    """The whole answer."""
    events = [event async for event in runtime.pipeline.ask(Question(question, **fields))]
    assert isinstance(events[-1], Answer)
    return events[-1]


async def test_nothing_new_changes_nothing(parts: Parts, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload that finds what was there before tells so, loads nothing and embeds nothing."""
    runtime, reloader = made(parts)
    before = dict(parts.engine.loaded)
    embedded = list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(parts.encoder, "encode", embedded.extend)
        done = await reloader.reload()
    assert embedded == []
    assert done == Reloaded((), (), (), (), ())
    assert parts.engine.loaded == before
    assert (await ask(runtime, "heart chest pain")).specialty == "cardiology"


async def test_a_new_specialty_comes_in(parts: Parts, world: World) -> None:
    """A specialty that was installed while serving gets the questions that are its own."""
    runtime, reloader = made(parts)
    assert (await ask(runtime, "skin rash itch")).specialty is None
    world.entries.append(entry("dermatology"))
    done = await reloader.reload()
    assert done == Reloaded(("dermatology",), (), (), (), ())
    assert (await ask(runtime, "skin rash itch")).specialty == "dermatology"
    assert (await ask(runtime, "heart chest pain")).specialty == "cardiology"


async def test_a_removed_specialty_drains(make_parts: MakeParts, world: World) -> None:
    """A specialty that was removed gets no more questions; answers that run are finished before its adapter goes."""
    parts = make_parts(engine=EchoEngine(pause=0.001))
    runtime, reloader = made(parts)
    old = runtime.pipeline.catalog.entries["oncology"].adapter
    async with aclosing(runtime.pipeline.ask(Question("a tumor or cancer"))) as events:
        await anext(events)
        world.entries = [one for one in world.entries if one.specialty.name != "oncology"]
        assert (await reloader.reload()).removed == ("oncology",)
        assert (await ask(runtime, "a tumor or cancer")).specialty is None
        assert old.engine_name in parts.engine.loaded
        last = [event async for event in events][-1]
    assert isinstance(last, Answer)
    assert last.adapter == old
    await reloader.reload()
    assert old.engine_name not in parts.engine.loaded


async def test_a_changed_adapter_has_another_name(make_parts: MakeParts, world: World) -> None:
    """A changed adapter serves under another name; who began with the old one ends with it, and then it goes."""
    parts = make_parts(engine=EchoEngine(pause=0.001))
    runtime, reloader = made(parts)
    old, new = entry("oncology"), entry("oncology", "other weights")
    async with aclosing(runtime.pipeline.ask(Question("a tumor or cancer"))) as events:
        await anext(events)
        world.entries[-1] = new
        assert (await reloader.reload()).changed == ("oncology",)
        assert engine_names([old, new]) <= parts.engine.loaded.keys()
        during = await ask(runtime, "a tumor or cancer")
        last = [event async for event in events][-1]
    assert isinstance(last, Answer)
    assert (last.adapter, during.adapter) == (old.adapter, new.adapter)
    await reloader.reload()
    assert set(parts.engine.loaded) == engine_names(world.entries)


async def test_going_back_to_an_old_adapter_works(parts: Parts, world: World) -> None:
    """An adapter that was exchanged can come back."""
    runtime, reloader = made(parts)
    old = world.entries[-1]
    world.entries[-1] = entry("oncology", "other weights")
    await reloader.reload()
    world.entries[-1] = old
    assert (await reloader.reload()).changed == ("oncology",)
    assert (await ask(runtime, "a tumor or cancer")).adapter == old.adapter


async def test_more_changes_than_room_take_turns(make_parts: MakeParts, world: World) -> None:
    """When the engine has room for one more adapter, all can be exchanged all the same, one after the other."""
    parts = make_parts(engine=EchoEngine(max_adapters=4))
    runtime, reloader = made(parts)
    world.entries = [entry(name, f"other {name}") for name in EXAMPLES]
    done = await reloader.reload()
    assert (done.changed, done.refused) == (tuple(EXAMPLES), ())
    assert {one.adapter for one in runtime.pipeline.catalog.entries.values()} == {one.adapter for one in world.entries}
    await reloader.reload()
    assert set(parts.engine.loaded) == engine_names(world.entries)


@pytest.mark.parametrize(("room", "added"), [(3, ()), (4, ("dermatology",))])
async def test_what_finds_no_room_is_refused(
    room: int, added: tuple[str, ...], make_parts: MakeParts, world: World
) -> None:
    """An adapter for which the engine has no room is refused with what to do, and the others serve on."""
    runtime, reloader = made(make_parts(engine=EchoEngine(max_adapters=room)))
    world.entries += [entry("dermatology"), entry("urology")]
    done = await reloader.reload()
    assert done.added == added
    assert [one.specialty for one in done.refused] == [n for n in ("dermatology", "urology") if n not in added]
    assert "HLO_SPARE_ADAPTERS" in done.refused[-1].remedy
    assert runtime.pipeline.catalog.refusals == done.refused
    assert (await ask(runtime, "heart chest pain")).specialty == "cardiology"


async def test_room_that_others_leave_is_taken(make_parts: MakeParts, world: World) -> None:
    """In an engine that is full, a new specialty takes the room of one that was removed."""
    _, reloader = made(make_parts(engine=EchoEngine(max_adapters=3)))
    world.entries = [*world.entries[1:], entry("dermatology")]
    done = await reloader.reload()
    assert (done.added, done.removed, done.refused) == (("dermatology",), ("cardiology",), ())


async def test_a_broken_new_version_leaves_the_old_one(parts: Parts, world: World) -> None:
    """A specialty or plugin whose new version is refused is served as it was, and both facts are told."""
    runtime, reloader = made(parts)
    old = runtime.pipeline.catalog.entries
    world.entries = [entry("cardiology")]
    world.refusals = (
        Refusal("plugin-oncology", "oncology", "It is damaged.", "Fetch it again."),
        Refusal("plugin-neurology", None, "It does not import.", "Mend it."),
    )
    done = await reloader.reload()
    assert (done.kept, done.removed, done.refused) == (("neurology", "oncology"), (), world.refusals)
    assert runtime.pipeline.catalog.entries == old
    assert (await ask(runtime, "a tumor or cancer")).specialty == "oncology"


async def test_an_uninstalled_plugin_is_not_kept(parts: Parts, world: World) -> None:
    """A plugin that is no longer installed is removed, though HLO_PLUGINS still names it and it is told as refused."""
    _, reloader = made(parts)
    world.entries = world.entries[:2]
    world.refusals = (Refusal("ghost", None, "Not installed.", "Install it."),)
    done = await reloader.reload()
    assert (done.kept, done.removed) == ((), ("oncology",))


async def test_an_adapter_without_effect_is_refused(parts: Parts, world: World) -> None:
    """A changed adapter that has no effect is refused, taken out of the engine, and the old one serves on."""
    runtime, reloader = made(parts)
    idle = AdapterVersion("oncology", "0" * 64, make_version("x").path, 8, ("q_proj",), 1)
    before = entry("oncology")
    world.entries[-1] = Entry(before.specialty, idle, before.plugin, before.distribution, "2")
    done = await reloader.reload()
    assert (done.changed, done.kept) == ((), ("oncology",))
    assert "changes nothing" in done.refused[0].reason
    assert idle.engine_name not in parts.engine.loaded
    assert (await ask(runtime, "a tumor or cancer")).adapter == before.adapter


async def test_changed_examples_change_the_routing(parts: Parts, world: World) -> None:
    """New examples count from the reload on, though the adapter stays."""
    runtime, reloader = made(parts)
    world.entries[0] = entry("cardiology", examples={"patients": ("parking places",)})
    done = await reloader.reload()
    assert done == Reloaded((), (), (), (), ())
    assert (await ask(runtime, "parking places")).specialty == "cardiology"
    assert (await ask(runtime, "heart chest pain")).specialty is None


async def test_the_background_is_what_is_not_installed(parts: Parts, world: World) -> None:
    """A field is background until its specialty is installed, and again once that is gone."""
    encoder = parts.encoder.encoder
    fields = {"allergy": "skin hives", "dermatology": "skin", "everyday": "bread"}
    groups = [bank.embedded(name, (text,), encoder) for name, text in fields.items()]
    runtime = msgspec.structs.replace(made(parts)[0], background=Background(tuple(groups)))
    reloader = Reloader(runtime)

    async def behind() -> list[str]:
        await reloader.reload()
        return [group.name for group in runtime.pipeline.edition.router.bank.background]

    assert await behind() == list(fields)
    world.entries.append(entry("dermatology"))
    assert await behind() == ["everyday"]  # of the two others, one is its name, and the other is near it
    assert (await ask(runtime, "skin rash itch")).specialty == "dermatology"
    world.entries.pop()
    assert await behind() == list(fields)
    assert (await ask(runtime, "skin rash itch")).specialty is None


async def test_a_conversation_outlives_a_reload(parts: Parts, world: World) -> None:
    """What people say when they go on is known after a reload too."""
    follow_ups = bank.embedded("follow_ups", ("and at night",), parts.encoder.encoder)
    runtime = msgspec.structs.replace(made(parts)[0], background=Background((), follow_ups))
    await Reloader(runtime).reload()
    assert (await ask(runtime, "and at night?")).specialty is None
    assert (await ask(runtime, "and at night?", turns=(Turn("heart chest pain"),))).specialty == "cardiology"


async def test_a_reload_that_breaks_the_calibration_changes_nothing(
    parts: Parts, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In production a calibration that would not hold fails the reload; what was loaded for it leaves the engine."""
    runtime, reloader = made(parts)
    edition, loaded = runtime.pipeline.edition, dict(parts.engine.loaded)
    world.entries.append(entry("dermatology"))

    def refuse(*_: object) -> Edition:
        assert len(parts.engine.loaded) == len(loaded) + 1
        raise CalibrationError("The calibration does not hold.", remedy="Make another.")

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "make_edition", refuse)
        with pytest.raises(CalibrationError):
            await reloader.reload()
    assert runtime.pipeline.edition is edition
    assert parts.engine.loaded == loaded
    assert (await reloader.reload()).added == ("dermatology",)


async def test_embeddings_of_another_encoder_are_refused(parts: Parts, world: World) -> None:
    """A new version that brings embeddings of another encoder is refused, and the old one serves on."""
    runtime, reloader = made(parts)
    world.entries[0] = entry("cardiology", examples={}, embeddings=Embeddings("other", {"p": [[1.0] * 256]}))
    done = await reloader.reload()
    assert (done.kept, [one.specialty for one in done.refused]) == (("cardiology",), ["cardiology"])
    assert (await ask(runtime, "heart chest pain")).specialty == "cardiology"


async def test_new_hooks_are_called(parts: Parts, world: World) -> None:
    """The hooks that are installed now see the questions from the reload on."""
    runtime, reloader = made(parts)
    world.hooks = Hooks(question=(Hook("a", lambda question: Screening(notice="New."), ("question",)),))
    await reloader.reload()
    assert (await ask(runtime, "heart chest pain")).text.startswith("New.\n\ncardiology:")


async def test_a_failed_reload_changes_nothing(parts: Parts, world: World) -> None:
    """When discovery itself fails, the error is raised and counted, and all is served as before; the next may work."""
    runtime, reloader = made(parts)
    edition = runtime.pipeline.edition
    world.error = PluginError("The lock file is not JSON.", remedy="Mend it.")
    with pytest.raises(PluginError):
        await reloader.reload()
    assert runtime.pipeline.edition is edition
    world.error = None
    await reloader.reload()
    told = runtime.metrics.render().decode()
    assert 'hlo_reloads_total{outcome="failed"} 1.0' in told
    assert 'hlo_reloads_total{outcome="done"} 1.0' in told


async def test_reloads_take_turns(parts: Parts, world: World) -> None:
    """Reloads that come together run one after the other."""
    runtime, reloader = made(parts)
    world.entries.append(entry("dermatology"))
    first, second = await asyncio.gather(reloader.reload(), reloader.reload())
    assert (first.added, second.added) == (("dermatology",), ())
    assert (await ask(runtime, "skin rash itch")).specialty == "dermatology"


async def test_under_load_no_request_fails(make_parts: MakeParts, world: World) -> None:
    """While questions come without end, adapters are exchanged again and again, and every answer is of one version."""
    parts = make_parts(engine=EchoEngine(pause=0.0001, max_adapters=4))
    runtime, reloader = made(parts)
    valid = set(parts.engine.loaded.values())
    stop = False
    answers: list[Answer] = []

    async def client() -> None:
        while not stop:
            answers.append(await ask(runtime, "a tumor or cancer"))

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for number in range(5):
        world.entries[-1] = entry("oncology", f"weights {number}")
        valid.add(world.entries[-1].adapter)
        await reloader.reload()
        await asyncio.sleep(0.005)
    stop = True
    await asyncio.gather(*clients)
    used = {one.adapter for one in answers}
    assert used <= valid
    assert len(used) > 2
    await reloader.reload()
    assert set(parts.engine.loaded) == engine_names(world.entries)


async def test_closing_gives_up_waiting(make_parts: MakeParts, world: World) -> None:
    """Closing does not wait for an answer that still uses what leaves."""
    parts = make_parts(engine=EchoEngine(pause=30))
    runtime, reloader = made(parts)
    async with aclosing(runtime.pipeline.ask(Question("a tumor or cancer"))) as events:
        await anext(events)
        world.entries.pop()
        await reloader.reload()
        await reloader.close()
