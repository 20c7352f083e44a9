"""Real vLLM with fewer slots than adapters: nobody starves, nobody gets another's weights or another's prefix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, asynccontextmanager
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from hlo.contracts import EngineOptions
from hlo.generation import adapters, base_model
from hlo.generation.adapters import Located
from hlo.generation.prompting import raw
from hlo.generation.tokenizer import ChatTokenizer
from hlo.generation.vllm_engine import VllmEngine
from hlo.records import AdapterVersion, Delta, Prompt, Sampling
from tests.e2e.reference import ADAPTERS, MODEL
from tests.e2e.test_answers import ASKED, SPECIALTIES

SLOTS, TOKENS = 2, 24
NAMES = SPECIALTIES[:5]  # the last one is loaded under traffic
LONG = f"<s>[INST] {ASKED['cardiology']} " * 20 + "[/INST]"


class Found(Struct, frozen=True):
    """What the engine did: texts by adapter, tokens of the prefix cache by who asked, and how long what took."""

    alone: dict[str, str]
    mixed: dict[str, list[str]]
    cached: dict[str, int]
    streamed: list[Delta]
    whole: list[Delta]
    whole_s: float
    rare_ended_first: bool


class Asker:
    """Asks the engine, and reads to the end."""

    def __init__(self, engine: VllmEngine, versions: dict[str, AdapterVersion]) -> None:
        self.engine = engine
        self.versions = versions
        self._tokenizer = ChatTokenizer.load(MODEL)

    async def deltas(self, text: str, adapter: AdapterVersion | None, *, whole: bool, tokens: int) -> list[Delta]:
        """All that comes."""
        made = raw(text, self._tokenizer, adapter)
        prompt = Prompt(made.token_ids, made.adapter, whole)
        async with aclosing(self.engine.generate(prompt, Sampling(max_tokens=tokens))) as found:
            return [delta async for delta in found]

    async def text(self, name: str) -> str:
        """What an adapter says to one prompt."""
        found = await self.deltas(LONG[-120:], self.versions[name], whole=True, tokens=TOKENS)
        return "".join(delta.text for delta in found)

    async def cached(self, adapter: AdapterVersion | None) -> int:
        """How much of one long prompt was computed before."""
        return (await self.deltas(LONG, adapter, whole=True, tokens=1))[0].cached_tokens


@asynccontextmanager
async def asker(store: Path) -> AsyncIterator[Asker]:
    """vLLM with two slots for five adapters, of which four are loaded."""
    model = base_model.find("")
    versions = {
        name: adapters.check(Located.at(ADAPTERS / name), name, model.linears, model.name, store) for name in NAMES
    }
    kinds = {kind for version in versions.values() for kind in version.modules}
    engine = await VllmEngine.start(
        EngineOptions(
            model=model.folder,
            name=model.name,
            device="cpu",
            dtype="float32",
            quantization="none",
            slots=len(NAMES) + 1,
            resident=SLOTS,
            turn_s=0.2,
            rank=max(version.rank for version in versions.values()),
            kinds=tuple(sorted(kinds)),
            null=adapters.null(model.linears, model.name, frozenset(kinds), store),
            enforce_eager=True,
        )
    )
    try:
        for name in NAMES[:-1]:
            await engine.load(versions[name])
        yield Asker(engine, versions)
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All that one engine is asked, in a process of its own: vLLM leaves sockets to the garbage collector."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_found, tmp_path_factory.mktemp("store")).result()


def _found(store: Path) -> Found:
    return asyncio.run(_ask(store))


async def _ask(store: Path) -> Found:
    async with asker(store) as asks:
        last = NAMES[-1]
        alone = {name: await asks.text(name) for name in NAMES[:-1]}
        work = [name for name in NAMES[:-1] for _ in range(3)]
        running = [asyncio.create_task(asks.text(name)) for name in work]
        await asyncio.sleep(0.05)
        await asks.engine.load(asks.versions[last])  # takes a slot from one that runs
        mixed: dict[str, list[str]] = {}
        for name, said in zip(work, await asyncio.gather(*running), strict=True):
            mixed.setdefault(name, []).append(said)
        alone[last] = await asks.text(last)

        first, second = (asks.versions[name] for name in NAMES[:2])
        other = msgspec.structs.replace(first, sha256="0" * 64, path=second.path)  # the same name, other weights
        await asks.engine.load(other)
        cached = {"first": await asks.cached(first), "again": await asks.cached(first)}
        cached |= {"second": await asks.cached(second), "other version": await asks.cached(other)}
        cached |= {"base": await asks.cached(None), "first still": await asks.cached(first)}

        streamed = await asks.deltas(LONG, first, whole=False, tokens=TOKENS)
        clock = time.perf_counter()
        whole = await asks.deltas(LONG, first, whole=True, tokens=TOKENS)
        whole_s = time.perf_counter() - clock
        return Found(alone, mixed, cached, streamed, whole, whole_s, await _rare_ends(asks))


async def _rare_ends(asks: Asker) -> bool:
    """Whether an adapter is answered while others than it hold all slots, without a moment's pause."""
    rare = asyncio.Event()

    async def overlapping(name: str) -> None:
        while not rare.is_set():
            await asks.text(name)

    busy = [asyncio.create_task(overlapping(name)) for name in NAMES[:SLOTS] for _ in range(3)]
    await asyncio.sleep(0.5)
    try:
        await asyncio.wait_for(asks.text(NAMES[3]), 60)
        return True
    except TimeoutError:
        return False
    finally:
        rare.set()
        await asyncio.gather(*busy)


def test_adapters_that_take_turns_say_what_they_say_alone(found: Found) -> None:
    """With fewer slots than adapters, and one more loaded under traffic, each says what it says by itself."""
    assert len(set(found.alone.values())) == len(NAMES)
    assert found.mixed == {name: [found.alone[name]] * 3 for name in NAMES[:-1]}


def test_an_adapter_is_answered_while_others_are_always_asked(found: Found) -> None:
    """Streams that overlap without end hold no slot against an adapter that waits; vLLM alone would let them."""
    assert found.rare_ended_first


def test_a_prefix_is_computed_once_for_each_adapter(found: Found) -> None:
    """A prompt that an adapter has read is found in the prefix cache, and stays there."""
    assert found.cached["first"] == 0
    assert found.cached["again"] == found.cached["first still"] > 100


def test_no_prefix_is_shared_between_adapters_versions_or_base(found: Found) -> None:
    """The same prompt for another adapter, for another version of the same, or for the base is computed anew."""
    assert (found.cached["second"], found.cached["other version"], found.cached["base"]) == (0, 0, 0)


def test_a_whole_answer_comes_at_once_and_says_when_it_began(found: Found) -> None:
    """Wanted whole, the same text comes in one delta, with the time of the first token, which is before the last."""
    (only,) = found.whole
    assert only.text == "".join(delta.text for delta in found.streamed)
    assert only.token_ids == tuple(token for delta in found.streamed for token in delta.token_ids)
    assert only.finish_reason == found.streamed[-1].finish_reason
    assert len(found.streamed) > 1
    assert only.first_token_s is not None
    assert 0 < only.first_token_s < found.whole_s
