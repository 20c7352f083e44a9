"""The engine `openai`, against stubs that speak HTTP: who is asked, what is asked again, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from hlo.contracts import EngineOptions, Servers
from hlo.errors import AdapterError, EngineDead, EngineError, InvalidRequest, NotReady, Overloaded, SettingsError
from hlo.generation.affinity import FREE
from hlo.generation.openai_engine import OpenAIEngine, wire
from hlo.records import AdapterVersion, Delta, Prompt, Sampling
from tests.vllm_stub import BASE, StubServer, stubs

LIMIT_S = 20
FOLDER = Path.cwd()  # where the stubs' adapters would lie
MakeVersion = Callable[[str], AdapterVersion]


def options(*servers: StubServer, slots: int = 8, null: AdapterVersion | None = None, key: str = "") -> EngineOptions:
    return EngineOptions(
        model=Path("model"),
        name="model",
        device="cpu",
        dtype="auto",
        quantization="none",
        slots=slots,
        rank=8,
        kinds=("q_proj",),
        null=null,
        servers=Servers(tuple(one.url for one in servers), SecretStr(key) if key else None, timeout_s=5, wait_s=3),
    )


@asynccontextmanager
async def engine(
    *servers: StubServer, slots: int = 8, null: AdapterVersion | None = None, key: str = ""
) -> AsyncIterator[OpenAIEngine]:
    started = await OpenAIEngine.start(options(*servers, slots=slots, null=null, key=key))
    try:
        yield started
    finally:
        await started.close()


async def deltas(
    of: OpenAIEngine, adapter: AdapterVersion | None, *, whole: bool = False, tokens: int = 100
) -> list[Delta]:
    prompt = Prompt((1, 2, 3), adapter, whole, (("traceparent", "00-aa-bb-01"),))
    async with aclosing(of.generate(prompt, Sampling(max_tokens=tokens))) as found:
        return [delta async for delta in found]


async def text(of: OpenAIEngine, adapter: AdapterVersion | None, *, whole: bool = False) -> str:
    return "".join(delta.text for delta in await deltas(of, adapter, whole=whole))


def author(said: str) -> tuple[str, int]:
    """Who wrote a stub's text, and on which port."""
    name, _, port = said.rpartition(" on ")
    return name, int(port)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


def counted(of: OpenAIEngine, how: str) -> int:
    return sum(one.requests.get(how, 0) for one in of.activity.servers)


async def test_each_adapter_stays_on_one_server(version: MakeVersion) -> None:
    """Requests of one adapter go to one server, those of many adapters to all, and answers say who wrote them."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        ports = set()
        for number in range(8):
            adapter = version(f"a{number}")
            await made.load(adapter)
            said = [author(await text(made, adapter, whole=whole)) for whole in (False, True)]
            assert [name for name, _ in said] == [adapter.engine_name] * 2
            assert len({port for _, port in said}) == 1
            ports.add(said[0][1])
        assert ports == {one.port for one in both}
        assert author(await text(made, None))[0] == BASE


async def test_every_server_has_every_adapter(version: MakeVersion) -> None:
    """An adapter is given to all servers once, by its name with the content's hash and its absolute path."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        await made.load(version("heart"))
        await made.load(version("heart"))
        for one in both:
            assert one.adapters == {version("heart").engine_name: str(FOLDER / "heart")}
            assert one.given == [version("heart").engine_name]


async def test_a_hot_adapter_spills_over(version: MakeVersion) -> None:
    """More requests for one adapter than fit a batch go to a second server."""
    async with stubs(StubServer(pause=0.02), StubServer(pause=0.02)) as both, engine(*both) as made:
        await made.load(version("heart"))
        said = await asyncio.gather(*(text(made, version("heart")) for _ in range(3 * FREE)))
        ports = [author(one)[1] for one in said]
        assert {name for name, _ in map(author, said)} == {version("heart").engine_name}
        assert min(ports.count(one.port) for one in both) >= FREE


@pytest.mark.parametrize("failing", [500, -1], ids=["a status of 500", "a cut connection"])
async def test_what_has_not_begun_is_asked_elsewhere(version: MakeVersion, failing: int) -> None:
    """A request that a server fails before its first word is answered by another one, and is counted as moved."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        await made.load(version("heart"))
        first = author(await text(made, version("heart")))[1]
        home, other = sorted(both, key=lambda one: one.port != first)
        home.failing.append(failing if failing > 0 else 0)
        if failing < 0:
            await home.kill()
        assert author(await text(made, version("heart"))) == (version("heart").engine_name, other.port)
        assert counted(made, "moved") == 1
        assert counted(made, "done") == 2


async def test_what_has_begun_is_told(version: MakeVersion) -> None:
    """A stream whose server fails in the middle ends with a problem that says so."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        await made.load(version("heart"))
        for one in both:
            one.failing.append(-5)
        with pytest.raises(EngineError, match="was answering failed"):
            await text(made, version("heart"))
        assert counted(made, "failed") == 1


async def test_a_whole_answer_is_begun_anew_elsewhere(version: MakeVersion) -> None:
    """Where nobody reads along, an answer that breaks off in the middle is made by another server."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        await made.load(version("heart"))
        home = author(await text(made, version("heart")))[1]
        for one in both:
            if one.port == home:
                one.failing.append(-5)
        (delta,) = await deltas(made, version("heart"), whole=True)
        assert author(delta.text)[1] != home
        assert delta.finish_reason == "stop"
        assert delta.first_token_s is not None


async def test_full_queues_are_told_apart(version: MakeVersion) -> None:
    """A server that is busy stays in use; when all are, that is what is told."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        await made.load(version("heart"))
        both[0].failing.append(503)
        both[1].failing.append(429)
        with pytest.raises(Overloaded):
            await text(made, version("heart"))
        assert all(one.up for one in made.activity.servers)


async def test_a_refused_request_is_not_asked_again(version: MakeVersion) -> None:
    """What is wrong with a request is told once, by the parameter's name, and never in the server's words."""
    async with stubs(StubServer(), StubServer()) as both, engine(*both) as made:
        await made.load(version("heart"))
        for one in both:
            one.failing.append(400)
        with pytest.raises(InvalidRequest, match="`prompt`") as caught:
            await text(made, version("heart"))
        assert "about" not in str(caught.value)
        assert sum(len(one.completions) for one in both) == 1


async def test_a_server_that_lost_an_adapter_is_given_it_again(version: MakeVersion) -> None:
    """A server that was started anew unnoticed gets the adapter, and then the request, once more."""
    async with stubs(StubServer()) as (one,), engine(one) as made:
        await made.load(version("heart"))
        one.adapters.clear()
        assert author(await text(made, version("heart")))[0] == version("heart").engine_name
        assert one.given == [version("heart").engine_name] * 2


async def test_a_server_that_comes_back_gets_its_adapters(version: MakeVersion) -> None:
    """With all servers gone questions are refused for the time being; one that comes back has every adapter first."""
    async with stubs(StubServer()) as (one,), engine(one) as made:
        await made.load(version("heart"))
        await made.load(version("brain"))
        await one.kill()
        with pytest.raises(NotReady):
            await text(made, version("heart"))
        with pytest.raises(NotReady):
            await made.check_health()
        one.asked.clear()
        await one.start()
        await until(lambda: made.activity.servers[0].up)
        await made.check_health()
        assert sorted(one.adapters) == sorted([version("heart").engine_name, version("brain").engine_name])
        assert one.completions == []
        assert author(await text(made, version("heart")))[0] == version("heart").engine_name


async def test_adapters_named_at_start_are_used(version: MakeVersion) -> None:
    """A server that lets no adapter be loaded is used with those that it was started with; others are told by name."""
    name = version("heart").engine_name
    async with stubs(StubServer(lets_load=False, adapters={name: "x"})) as (one,), engine(one) as made:
        await made.load(version("heart"))
        assert author(await text(made, version("heart")))[0] == name
        with pytest.raises(AdapterError, match=f"has no adapter `{version('brain').engine_name}`") as caught:
            await made.load(version("brain"))
        assert f"--lora-modules {version('brain').engine_name}={FOLDER / 'brain'}" in caught.value.remedy


async def test_an_adapter_that_one_server_lacks_is_asked_of_the_others(version: MakeVersion) -> None:
    """A server without an adapter, or on which it changes nothing, gets no request for it."""
    name = version("heart").engine_name
    servers = StubServer(silent={name}), StubServer(lets_load=False), StubServer()
    async with stubs(*servers) as (silent, bare, good), engine(*servers) as made:
        await made.load(version("heart"))
        for _ in range(4):
            assert author(await text(made, version("heart")))[1] == good.port
        assert silent.completions == bare.completions == []


async def test_an_adapter_without_effect_is_refused(version: MakeVersion) -> None:
    """An adapter that changes nothing on any server is refused, and no server is asked for it."""
    async with stubs(StubServer(silent={version("heart").engine_name})) as (one,), engine(one) as made:
        with pytest.raises(AdapterError, match="changes nothing"):
            await made.load(version("heart"))
        assert one.completions == []


async def test_what_a_server_says_of_an_adapter_is_told(version: MakeVersion) -> None:
    """An adapter that a server can not load is refused with its reason, and with what it needs."""
    async with stubs(StubServer()) as (one,), engine(one) as made:
        with pytest.raises(AdapterError, match="no such file") as caught:
            await made.load(version("broken"))
        assert "--max-lora-rank" in caught.value.remedy


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (StubServer(version="0.31.2"), "0.32 or newer"),
        (StubServer(key="another"), "HLO_ENGINE_KEY"),
        (StubServer(author="someone"), "answers as `someone`"),
        (StubServer(version="latest"), "which is none"),
    ],
    ids=["old", "key", "author", "version"],
)
async def test_servers_that_will_not_do_are_told_at_start(wrong: StubServer, told: str) -> None:
    """Where no server can be used, the start fails at once and says of each what is wrong with it."""
    async with stubs(wrong):
        with pytest.raises(EngineError, match=told):
            await OpenAIEngine.start(options(wrong, key="right"))


async def test_a_server_with_another_model_is_not_used(version: MakeVersion) -> None:
    """A server whose base model says something else than the first one's gets no request."""
    async with stubs(StubServer(), StubServer(shift=2.0)) as both, engine(*both) as made:
        assert [one.up for one in made.activity.servers].count(True) == 1
        await made.load(version("heart"))
        assert len({author(await text(made, None))[1] for _ in range(4)}) == 1


async def test_all_servers_may_get_another_model(version: MakeVersion) -> None:
    """A server that comes back with another model, when no other is up, is used: it is the operator's new one."""
    async with stubs(StubServer()) as (one,), engine(one) as made:
        await made.load(version("heart"))
        await one.kill()
        with pytest.raises(NotReady):
            await text(made, version("heart"))
        one.shift = 3.0
        await one.start()
        await until(lambda: made.activity.servers[0].up)
        assert author(await text(made, version("heart")))[0] == version("heart").engine_name


async def test_servers_may_start_later(version: MakeVersion) -> None:
    """A server that is not there at the start is used once it is."""
    late = StubServer()
    async with stubs(StubServer(), late) as (first, _):
        await late.kill()
        async with engine(first, late) as made:
            await made.load(version("heart"))
            assert [one.up for one in made.activity.servers] == [True, False]
            await late.start()
            await until(lambda: all(one.up for one in made.activity.servers))
            assert late.given == [version("heart").engine_name]


@pytest.mark.parametrize(("release", "asked"), [("0.32.0", "null"), ("0.33.0", BASE)])
async def test_the_base_model_is_asked_through_an_adapter_of_zeros(
    version: MakeVersion, release: str, asked: str
) -> None:
    """A vLLM that mixes base and adapters up gets an adapter of zeros for the base model; a newer one does not."""
    null = version("null")
    one = StubServer(version=release, silent={null.engine_name})
    async with stubs(one), engine(one, null=null) as made:
        await text(made, None)
        assert one.completions[-1].model.split("@")[0] == asked


async def test_fewer_places_than_adapters_are_shared_in_turns(version: MakeVersion) -> None:
    """A server with fewer places (`--max-loras`) than there are adapters never has more than these at once."""
    one, most = StubServer(max_loras=2, pause=0.005), 0
    async with stubs(one), engine(one) as made:
        adapters = [version(f"a{number}") for number in range(5)]
        for adapter in adapters:
            await made.load(adapter)

        async def ask(adapter: AdapterVersion) -> str:
            nonlocal most
            said = []
            async with aclosing(made.generate(Prompt((1, 2), adapter), Sampling(max_tokens=9))) as found:
                async for delta in found:
                    said.append(delta.text)
                    running.add(adapter.name)
                    most = max(most, len(running))
            running.discard(adapter.name)
            return "".join(said)

        running: set[str] = set()
        await asyncio.gather(*(ask(adapter) for adapter in adapters))
        assert most == 2
        assert sum(made.activity.turns.values()) == 5


async def test_all_that_decides_an_answer_is_sent(version: MakeVersion) -> None:
    """Token ids, every parameter that a server has a default for, the key, and the trace go along."""
    async with stubs(StubServer(key="a-key")) as (one,), engine(one, key="a-key") as made:
        await made.load(version("heart"))
        await text(made, version("heart"))
        asked = one.completions[-1]
        assert asked.body["prompt"] == [1, 2, 3]
        assert asked.headers["traceparent"] == "00-aa-bb-01"
        said = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert said.items() <= asked.body.items()


async def test_a_wrong_key_is_never_told(caplog: pytest.LogCaptureFixture) -> None:
    """The key is in no error, no log line, and no picture of the options."""
    async with stubs(StubServer(key="right")) as (one,):
        with pytest.raises(EngineError) as caught, caplog.at_level("DEBUG", "hlo"):
            await OpenAIEngine.start(options(one, key="a-secret-key"))
        assert "a-secret-key" not in f"{caught.value}{caplog.text}{options(one, key='a-secret-key')!r}"


async def test_line_breaks_of_unicode_stay_in_the_text(version: MakeVersion) -> None:
    """An answer may hold what some take for the end of a line (U+2028, U+0085), which JSON leaves as it is."""
    said = "a\u2028b\u0085c\x0bd\r\ne"
    async with stubs(StubServer(text=said)) as (one,), engine(one) as made:
        assert await text(made, None) == said


async def test_closing_stops_the_server() -> None:
    """A stream that is given up is closed, so that the server stops to write."""
    async with stubs(StubServer(pause=0.05)) as (one,), engine(one) as made:
        stream = made.generate(Prompt((1, 2)), Sampling(max_tokens=100))
        await anext(stream)
        await stream.aclose()
        await until(lambda: one.writing == 0)
        assert one.aborted == 1
        assert counted(made, "aborted") == 1


async def test_scores_are_those_of_one_server(version: MakeVersion) -> None:
    """With and without an adapter a prompt is scored by the same server, a number for each token after the first."""
    async with stubs(StubServer(), StubServer(shift=0.1)) as both, engine(*both) as made:
        await made.load(version("heart"))
        for ids in ((1, 2, 3), (4, 5), (6, 7, 8, 9)):
            for one in both:
                one.asked.clear()
            base, adapted = await made.score(Prompt(ids)), await made.score(Prompt(ids, version("heart")))
            assert len(base) == len(adapted) == len(ids) - 1
            assert base != adapted
            assert sum(bool(one.asked) for one in both) == 1


async def test_the_shortest_context_counts() -> None:
    """What fits is what fits every server."""
    async with stubs(StubServer(context=512), StubServer(context=256)) as both, engine(*both) as made:
        assert made.info.max_model_len == 256
        assert made.info.version == "0.33.0"


async def test_an_engine_without_servers_is_a_mistake_in_the_settings() -> None:
    """Without addresses there is nothing to start."""
    bare = EngineOptions(Path("m"), "m", "cpu", "auto", "none", 1, 8, ("q_proj",))
    with pytest.raises(SettingsError, match="HLO_ENGINE_URLS"):
        await OpenAIEngine.start(bare)


async def test_a_closed_engine_says_so() -> None:
    """After `close`, which may come twice, every call says that it was."""
    async with stubs(StubServer()) as (one,):
        made = await OpenAIEngine.start(options(one))
        await made.close()
        await made.close()
        with pytest.raises(EngineDead):
            await made.check_health()
        with pytest.raises(EngineDead):
            await text(made, None)


async def test_events_come_in_any_pieces() -> None:
    """Server-sent events are read whatever pieces they come in, comments left out."""
    sent = b': hi\n\ndata: {"a":1}\r\n\r\ndata:[DONE]\n\n'
    for size in (1, 3, len(sent)):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for at in range(0, len(sent), size):
                yield sent[at : at + size]

        assert [one async for one in wire.events(pieces())] == [b'{"a":1}', b"[DONE]"]
