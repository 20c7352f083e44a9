"""An engine that dies: what is told meanwhile, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hlo.contracts import Engine
from hlo.errors import AdapterError, EngineDead, EngineError, NotReady
from hlo.generation import adapters
from hlo.generation.supervised import Restarts, SupervisedEngine
from hlo.records import AdapterVersion, Delta, Prompt, Sampling
from hlo.testing import EchoEngine
from tests.conftest import make_version

if TYPE_CHECKING:
    from tests.conftest import Until

PROMPT = Prompt(tuple(map(ord, "what is the heart rate")))


class Mortal(EchoEngine):
    """An engine whose process ends when `closed` is set, as those who wait for it see it."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Say it, until it dies."""
        async for delta in super().generate(prompt, sampling):
            await self.check_health()
            yield delta


class World:
    """Engines as they are begun one after the other, and all that is told of them."""

    def __init__(self) -> None:
        self.made: list[EchoEngine] = []
        self.failing = 0  # the next starts of which none becomes an engine
        self.counted: list[str] = []
        self.stages: list[str] = []

    async def begin(self) -> Engine:
        """Another engine."""
        if self.failing:
            self.failing -= 1
            raise EngineError("The device is gone.")
        self.made.append(Mortal(pause=0.001))
        return self.made[-1]

    @asynccontextmanager
    async def engine(self, **restarts: float) -> AsyncIterator[SupervisedEngine]:
        """An engine that is watched."""
        given = Restarts(**({"backoff_s": 0.0} | restarts))  # type: ignore[arg-type]
        supervised = SupervisedEngine(await self.begin(), self.begin, given, self.counted.append)
        supervised.watch(self.stages.append)
        yield supervised
        await supervised.close()


@pytest.fixture
def world() -> World:
    """No engine yet."""
    return World()


@pytest.fixture(autouse=True)
def copies_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of these tests have no files."""
    monkeypatch.setattr(adapters, "check_copy", lambda _: None)


async def said(engine: Engine, prompt: Prompt = PROMPT) -> str:
    """All that an engine says."""
    return "".join([delta.text async for delta in engine.generate(prompt, Sampling())])


async def test_another_engine_answers_after_a_death(world: World, until: Until) -> None:
    """Who waits hears at once that the engine died, who comes meanwhile when to come again; then all is as before."""
    async with world.engine(backoff_s=0.05) as engine:
        version = make_version("cardiology")
        await engine.load(version)
        first = world.made[0]
        waiting = asyncio.create_task(said(engine))
        await until(lambda: first.running)
        first.closed = True
        with pytest.raises(EngineDead) as caught:
            await waiting
        assert "started anew" in caught.value.remedy
        await until(lambda: world.stages)
        for work in (said(engine), engine.check_health(), engine.score(PROMPT), engine.load(make_version("other"))):
            with pytest.raises(NotReady, match="restarting the engine, attempt 1 of 5"):
                await work
        assert engine.info.engine == "echo"
        await until(lambda: "ready" in world.stages)
        assert await said(engine, Prompt(PROMPT.token_ids, version)) == "cardiology:what is the heart rate"
    assert world.stages == ["restarting the engine, attempt 1 of 5", "ready"]
    assert world.counted == ["done"]
    assert len(world.made) == 2
    assert world.made[1].closed


async def test_a_death_that_nobody_asks_about_is_noticed(world: World, until: Until) -> None:
    """An idle engine that dies is started again before the next question comes."""
    async with world.engine() as engine:
        world.made[0].closed = True
        await until(lambda: "ready" in world.stages)
        assert await said(engine) == "base:what is the heart rate"


async def test_each_start_is_an_attempt(world: World, until: Until) -> None:
    """An engine that does not start is tried again, as often as the settings say."""
    async with world.engine(attempts=3) as engine:
        world.failing = 2
        world.made[0].closed = True
        await until(lambda: "ready" in world.stages)
        await engine.check_health()
    assert world.counted == ["failed", "failed", "done"]
    assert [stage[-11:] for stage in world.stages[:-1]] == [f"empt {number} of 3" for number in (1, 2, 3)]


@pytest.mark.parametrize("attempts", [0, 2])
async def test_an_engine_that_does_not_come_back_is_given_up(world: World, attempts: int) -> None:
    """After the last attempt the error that ends the server is there, and nothing else is tried."""
    async with world.engine(attempts=attempts) as engine:
        world.failing = 99
        world.made[0].closed = True
        error = await asyncio.wait_for(asyncio.shield(engine.given_up), 30)
        assert isinstance(error, EngineDead)
        assert f"in {attempts} attempts" in error.message
        with pytest.raises(NotReady, match="given up"):
            await engine.check_health()
    assert world.counted == ["failed"] * attempts


@pytest.mark.parametrize(("window_s", "deaths"), [(3600.0, 2), (1e-9, 6)])
async def test_attempts_are_counted_until_an_engine_has_run_for_a_while(
    world: World, until: Until, window_s: float, deaths: int
) -> None:
    """An engine that dies soon after each start is given up too; one that ran long enough begins a new count."""
    async with world.engine(attempts=2, window_s=window_s) as engine:
        for death in range(1, deaths + 1):
            world.made[-1].closed = True
            await until(lambda death=death: world.counted == ["done"] * death)  # type: ignore[misc]
        if window_s > 1:
            world.made[-1].closed = True
            await asyncio.wait_for(asyncio.shield(engine.given_up), 30)
        assert engine.given_up.done() == (window_s > 1)


async def test_what_was_unloaded_stays_out(world: World, until: Until) -> None:
    """An adapter that leaves while there is no engine is not loaded into the next one."""
    async with world.engine(backoff_s=0.05) as engine:
        for name in ("a", "b"):
            await engine.load(make_version(name))
        world.made[0].closed = True
        await until(lambda: world.stages)
        await engine.unload(make_version("a"))
        await until(lambda: "ready" in world.stages)
        assert set(world.made[1].loaded) == {make_version("b").engine_name}


async def test_an_adapter_that_can_not_come_back_is_told(
    world: World, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter whose copy is damaged leaves the others serving; its questions hear which file, until it is back."""
    a, b = make_version("a"), make_version("b")

    def check(version: AdapterVersion) -> None:
        if version == a:
            raise AdapterError("The copy in `/cache/a` was changed.", remedy="Reload.")

    async with world.engine() as engine:
        await engine.load(a)
        await engine.load(b)
        monkeypatch.setattr(adapters, "check_copy", check)
        world.made[0].closed = True
        await until(lambda: "ready" in world.stages)
        assert (await said(engine, Prompt(PROMPT.token_ids, b))).startswith("b:")
        with pytest.raises(AdapterError, match="/cache/a"):
            await said(engine, Prompt(PROMPT.token_ids, a))
        assert "/cache/a" in caplog.text
        await engine.load(a)
        assert (await said(engine, Prompt(PROMPT.token_ids, a))).startswith("a:")


async def test_an_engine_that_dies_of_its_adapters_is_closed(world: World, until: Until) -> None:
    """A start that dies while adapters are loaded is a failed attempt, and leaves no engine behind."""
    begin = world.begin

    async def deadly() -> Engine:
        engine = await begin()
        if len(world.made) == 2:
            world.made[1].load = _die  # type: ignore[method-assign, assignment]
        return engine

    world.begin = deadly  # type: ignore[method-assign]
    async with world.engine() as engine:
        await engine.load(make_version("a"))
        world.made[0].closed = True
        await until(lambda: "ready" in world.stages)
        assert world.counted == ["failed", "done"]
        assert world.made[1].closed
        assert set(world.made[2].loaded) == {make_version("a").engine_name}


async def test_nothing_is_started_after_the_end(world: World, until: Until) -> None:
    """A server that is told to stop while the engine is being restarted starts none any more."""
    async with world.engine(backoff_s=3600) as engine:
        world.made[0].closed = True
        await until(lambda: world.stages)
        await engine.close()
    assert len(world.made) == 1


async def test_an_engine_that_nobody_watches_is_as_it_is(world: World) -> None:
    """Until it is watched, a death is told as the engine tells it, and nothing is started."""
    engine = SupervisedEngine(await world.begin(), world.begin, Restarts(), world.counted.append)
    world.made[0].closed = True
    with pytest.raises(EngineDead) as caught:
        await said(engine)
    assert caught.value.remedy == "Start another."
    assert len(world.made) == 1


def test_a_copy_that_was_changed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checked copy of an adapter is what it was, or an error says where it lies and where it came from."""
    monkeypatch.undo()
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        (tmp_path / name).write_text(name)
    version = AdapterVersion("a", adapters.content_hash(tmp_path), tmp_path, 8, ("q_proj",), 1, "/srv/a")
    adapters.check_copy(version)
    (tmp_path / adapters.WEIGHTS).write_text("other")
    with pytest.raises(AdapterError, match=str(tmp_path)) as caught:
        adapters.check_copy(version)
    assert "/srv/a" in caught.value.remedy
    (tmp_path / adapters.WEIGHTS).unlink()
    with pytest.raises(AdapterError):
        adapters.check_copy(version)


async def _die(_: AdapterVersion) -> None:
    raise EngineDead("It died of it.")
