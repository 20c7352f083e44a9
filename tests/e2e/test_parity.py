"""Three ways to the same words: the server with vLLM, the engine `transformers`, and PEFT by itself."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import Struct

from tests.e2e.reference import BASE, EngineReference, Reference, Said, engine
from tests.e2e.server import Server
from tests.e2e.test_answers import ASKED, SPECIALTIES

PROMPTS = tuple(f"<s>[INST] {ASKED[name]} [/INST]" for name in ("cardiology", "oncology", "neurology"))
TOKENS = 40
WORK = [(prompt, adapter) for prompt in PROMPTS for adapter in [BASE, *SPECIALTIES]]
STOP = (" is ", "a symptom that nobody has")


class Answers(Struct, frozen=True):
    """What one engine says to all of `WORK`: one after the other, all in one batch, and with stop strings."""

    alone: list[Said]
    mixed: list[Said]
    stopped: list[Said]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What the engine `transformers` says."""

    async def ask() -> Answers:
        async with engine(SPECIALTIES, tmp_path_factory.mktemp("store")) as found:
            alone = [await found.say(prompt, adapter, TOKENS) for prompt, adapter in WORK]
            return Answers(alone, await together(found), await together(found, STOP))

    async def together(found: EngineReference, stop: tuple[str, ...] = ()) -> list[Said]:
        return list(await asyncio.gather(*(found.say(prompt, adapter, TOKENS, stop) for prompt, adapter in WORK)))

    return asyncio.run(ask())


def test_the_adapters_do_not_all_say_the_same(wanted: Answers) -> None:
    """For each prompt, adapters and base give many different answers: equal ones would prove nothing."""
    for start in range(0, len(WORK), len(SPECIALTIES) + 1):
        texts = {said.text for said in wanted.alone[start : start + len(SPECIALTIES) + 1]}
        assert len(texts) > len(SPECIALTIES) // 2
    assert {said.finish_reason for said in wanted.alone} == {"stop", "length"}


def test_the_engine_says_what_peft_says(wanted: Answers) -> None:
    """Under the engine `transformers`, base and adapters say what they say under PEFT's own `generate`."""
    assert wanted.mixed == wanted.alone
    some = [BASE, *SPECIALTIES[::4]]
    reference = Reference(some[1:])
    chosen = [(number, work) for number, work in enumerate(WORK) if work[1] in some]
    assert [wanted.alone[number].text for number, _ in chosen] == [
        reference.greedy(prompt, adapter, TOKENS) for _, (prompt, adapter) in chosen
    ]


def test_vllm_says_what_the_engine_says_alone_and_mixed(server: Server, wanted: Answers) -> None:
    """For each prompt, base and all adapters say the same in as many tokens, and end for the same reason."""

    def ask(one: tuple[str, str], stop: tuple[str, ...] = ()) -> Said:
        body = {"prompt": one[0], "adapter": one[1], "max_tokens": TOKENS, "stop": stop}
        answer = server.post("/generate", body).json()
        return Said(answer["text"], answer["usage"]["completion_tokens"], answer["finish_reason"])

    assert [ask(one) for one in WORK] == wanted.alone
    with ThreadPoolExecutor(len(WORK)) as pool:
        assert list(pool.map(ask, WORK)) == wanted.alone
        stopped = list(pool.map(lambda one: ask(one, STOP), WORK))
    assert stopped == wanted.stopped
    assert all(STOP[0] not in said.text for said in stopped)
    assert any(said.tokens < whole.tokens for said, whole in zip(stopped, wanted.alone, strict=True))
