"""OpenAI's routes of a real server, through clients that were made for other servers: none knows of HLO."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import AsyncInferenceClient, ChatCompletionInputStreamOptions, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.server import Server, running
from tests.e2e.test_answers import ASKED, SPECIALTIES, content_hash

README = Path(__file__).parents[2] / "README.md"
OPTIONS = ChatCompletionInputStreamOptions(include_usage=True)
OUTCOMES = 'hlo_questions_total{{outcome="{}",route="routed",specialty="cardiology"}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the engine that starts quickest: what stands before it is the same."""
    folder = tmp_path_factory.mktemp("openai")
    with running(folder, HLO_ENGINE="transformers", HLO_MAX_QUESTION_CHARS="20000") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's own client; only the address is another."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def anew(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same client for asyncio."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def user(words: str) -> list[ChatCompletionMessageParam]:
    """A conversation that begins."""
    return [{"role": "user", "content": words}]


HEART = user(ASKED["cardiology"])


def test_openai_asks(client: openai.OpenAI) -> None:
    """The official client gets the specialist's answer with the engine's usage, and finds adapter and trace."""
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=HEART, max_completion_tokens=12)
    answer = raw.parse()
    assert (answer.model, answer.object, answer.choices[0].message.role) == (
        "cardiology",
        "chat.completion",
        "assistant",
    )
    assert (answer.choices[0].message.content or "").strip()
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.choices[0].finish_reason == "length"
    assert raw.headers["hlo-adapter-sha256"] == content_hash("cardiology")
    assert (answer.system_fingerprint or "").endswith(f"cardiology@{content_hash('cardiology')[:16]}")
    assert answer._request_id == raw.headers["hlo-trace-id"]


def test_openai_streams_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    """A stream's pieces are the whole answer's text; its usage, where it is wanted, is the same."""
    asked: dict[str, Any] = {"model": "auto", "messages": HEART, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    found = list(stream)
    text = "".join(one.choices[0].delta.content or "" for one in found if one.choices)
    assert text == whole.choices[0].message.content
    assert {one.model for one in found} == {"cardiology"}
    assert [one.choices[0].finish_reason for one in found if one.choices][-1] == "length"
    assert (found[-1].usage, [one.usage for one in found[:-1]]) == (whole.usage, [None] * (len(found) - 1))


def test_openais_stream_helper_accumulates(client: openai.OpenAI) -> None:
    """The client's own accumulator makes a completion of the stream."""
    with client.chat.completions.stream(model="neurology", messages=HEART, max_tokens=8) as stream:
        final = stream.until_done().current_completion_snapshot
    assert (final.model, final.choices[0].finish_reason) == ("neurology", "length")
    assert (final.choices[0].message.content or "").strip()


def test_openai_goes_on_with_a_conversation(client: openai.OpenAI) -> None:
    """A reply's message goes back as it came, a follow-up stays with its specialist, a system's message is taken."""
    first = client.chat.completions.create(model="auto", messages=HEART, max_tokens=8)
    messages: list[Any] = [{"role": "system", "content": "Answer in one sentence."}, *HEART, first.choices[0].message]
    messages += user("and what about at night?")
    later = client.chat.completions.create(model="auto", messages=messages, max_tokens=8)
    assert later.model == "cardiology"
    assert later.usage is not None
    assert first.usage is not None
    assert later.usage.prompt_tokens > first.usage.prompt_tokens


def test_openai_pins_and_lists(client: openai.OpenAI) -> None:
    """Each model that is listed can be looked up and asked, `base` without an adapter."""
    ids = [model.id for model in client.models.list()]
    assert (ids[:2], sorted(ids[2:])) == (["auto", "base"], SPECIALTIES)
    assert client.models.retrieve("oncology").owned_by == "hlo-oncology"
    raw = client.chat.completions.with_raw_response.create(model="base", messages=HEART, max_tokens=4)
    assert raw.parse().model == "base"
    assert "hlo-adapter-sha256" not in raw.headers
    pinned = client.chat.completions.create(model="oncology", messages=HEART, max_tokens=4)
    assert pinned.model == "oncology"


def test_openai_continues_a_raw_prompt(client: openai.OpenAI, server: Server) -> None:
    """A text completion is what `/generate` gives for the same prompt and adapter, whole or streamed."""
    prompt = "The treatment of this disease"
    told = server.post("/generate", {"prompt": prompt, "adapter": "cardiology", "max_tokens": 8}).json()
    whole = client.completions.create(model="cardiology", prompt=prompt, max_tokens=8)
    assert whole.choices[0].text == told["text"]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == tuple(told["usage"].values())
    stream = client.completions.create(model="cardiology", prompt=prompt, max_tokens=8, stream=True)
    assert "".join(one.choices[0].text for one in stream) == told["text"]


def test_openai_samples(client: openai.OpenAI) -> None:
    """A seed repeats an answer, another changes it, and `stop` ends it."""
    asked: dict[str, Any] = {"model": "cardiology", "messages": HEART, "max_tokens": 12}
    one, again, other = (
        client.chat.completions.create(**asked, temperature=1.5, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    )
    assert one == again != other
    word = (client.chat.completions.create(**asked).choices[0].message.content or "").split()[1]
    stopped = client.chat.completions.create(**asked, stop=word).choices[0]
    assert (stopped.finish_reason, word in (stopped.message.content or "")) == ("stop", False)


def test_openais_errors(client: openai.OpenAI) -> None:
    """What is wrong is raised as the client's own class of error, with the parameter and a code that it knows."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=HEART)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.BadRequestError) as several:
        client.chat.completions.create(model="auto", messages=HEART, n=2)
    assert several.value.param == "n"
    assert "one choice" in several.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="cardiology", messages=user("heart " * 3000), stream=True)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages[0].content")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="auto", input="x")


async def test_openai_asks_at_once(anew: openai.AsyncOpenAI) -> None:
    """Concurrent questions of the asynchronous client each reach their own specialist, whole and streamed."""

    async def streamed(words: str) -> tuple[str, str]:
        text, model = "", ""
        async for one in await anew.chat.completions.create(
            model="auto", messages=user(words), max_tokens=6, stream=True
        ):
            text, model = text + (one.choices[0].delta.content or ""), one.model
        return model, text

    async def whole(words: str) -> tuple[str, str]:
        made = await anew.chat.completions.create(model="auto", messages=user(words), max_tokens=6)
        return made.model, made.choices[0].message.content or ""

    asked = ("cardiology", "oncology", "neurology")
    both = await asyncio.gather(*(streamed(ASKED[one]) for one in asked), *(whole(ASKED[one]) for one in asked))
    assert [model for model, _ in both] == [*asked, *asked]
    assert both[:3] == both[3:]
    with pytest.raises(openai.NotFoundError):
        await anew.chat.completions.create(model="nobody", messages=HEART)


def test_openai_leaves_in_the_middle(client: openai.OpenAI, server: Server) -> None:
    """Closing the client's stream stops the generation."""
    before = server.metric(OUTCOMES.format("abort"))
    stream = client.chat.completions.create(
        model="cardiology", messages=HEART, max_tokens=400, temperature=2.0, stream=True
    )
    next(iter(stream))
    stream.close()
    server.wait_for(OUTCOMES.format("abort"), before + 1)
    server.wait_for("hlo_questions_running", 0)


def test_hugging_face_asks(server: Server) -> None:
    """Hugging Face's client, which speaks OpenAI's language without OpenAI's package, asks, streams and fails."""
    client = InferenceClient(base_url=f"{server.url}/v1", api_key="none")
    asked: dict[str, Any] = {"messages": HEART, "model": "auto", "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    assert (whole.model, whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("cardiology", "length", 12)
    found = list(client.chat_completion(**asked, stream=True, stream_options=OPTIONS))
    text = "".join(one.choices[0].delta.content or "" for one in found if one.choices)
    assert text == whole.choices[0].message.content
    assert found[-1].usage is not None
    assert found[-1].usage.completion_tokens == 12
    with pytest.raises(HfHubHTTPError) as unknown:
        client.chat.completions.create(**asked | {"model": "nobody"})
    assert unknown.value.response.status_code == 404
    with pytest.raises(BadRequestError, match="tools"):
        client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])


async def test_hugging_face_asks_at_once(server: Server) -> None:
    """The same client for asyncio."""
    async with AsyncInferenceClient(base_url=f"{server.url}/v1", api_key="none") as client:
        asked: dict[str, Any] = {"model": "auto", "max_tokens": 6}
        questions = ("cardiology", "nephrology")
        found = await asyncio.gather(*(client.chat_completion(user(ASKED[one]), **asked) for one in questions))
        assert [one.model for one in found] == list(questions)


def test_the_readmes_example(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """What the README shows runs as it stands, at another address."""
    code = README.read_text(encoding="utf-8").split("<!-- openai -->\n```python\n")[1].split("```")[0]
    exec(code.replace("http://localhost:8000", server.url), {})  # noqa: S102 - the README's own code
    assert capsys.readouterr().out.startswith("cardiology ")
