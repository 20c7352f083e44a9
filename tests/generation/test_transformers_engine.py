"""The engine `transformers`: it says what Transformers and PEFT say by themselves, for many requests at once."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import json
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from hlo.contracts import EngineOptions
from hlo.errors import (
    AdapterError,
    EngineDead,
    EngineError,
    HLOError,
    InvalidRequest,
    ModelError,
    PromptTooLong,
    SettingsError,
)
from hlo.generation import transformers_engine
from hlo.generation.base_model import BaseModel
from hlo.generation.effect import check_effect
from hlo.generation.transformers_engine import TransformersEngine, loading, rounds
from hlo.generation.transformers_engine.model import Model
from hlo.generation.transformers_engine.text import Text
from hlo.records import AdapterVersion, Delta, Prompt, Sampling
from tests.conftest import MakeAdapter, Until

KINDS = ("q_proj", "v_proj", "down_proj")
PROMPTS = ((1, 3, 60, 61, 62, 4), (1, 3, 99, 4), (1, 3, *range(100, 140), 4))
TOKENS = 24


class Version(Protocol):
    """How tests ask for an adapter that the engine can load; another `seed` gives other weights."""

    def __call__(
        self, name: str, *, seed: int = 0, rank: int = 4, kinds: tuple[str, ...] = ("q_proj", "v_proj")
    ) -> AdapterVersion:
        """Write it and return its version."""


@pytest.fixture(scope="session")
def wordy_model(tiny_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights: its answers depend on the prompt, and differ from token to token."""
    folder = tmp_path_factory.mktemp("models") / "wordy"
    shutil.copytree(tiny_model.folder, folder)
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.dim() > 1 else 0.0)
        + (tensor if tensor.dim() == 1 else 0.0)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def version(make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path) -> Version:
    """Make adapters that change what the model says."""

    def make(
        name: str, *, seed: int = 0, rank: int = 4, kinds: tuple[str, ...] = ("q_proj", "v_proj")
    ) -> AdapterVersion:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for module, (out_features, in_features) in tiny_model.linears.items():
            if module.rpartition(".")[2] in kinds:
                prefix = f"base_model.model.{module}"
                tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator) * 0.1
                tensors[f"{prefix}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator) * 0.1
        folder = make_adapter(tmp_path / f"{name}-{seed}", tensors=tensors, rank=rank, kinds=kinds)
        return AdapterVersion(name, f"{seed:016x}".ljust(64, "0"), folder, rank, kinds, 1)

    return make


@pytest.fixture
def options(wordy_model: Path) -> EngineOptions:
    """Room for three adapters of rank 8."""
    return EngineOptions(
        model=wordy_model,
        name="wordy",
        device="cpu",
        dtype="float32",
        quantization="none",
        slots=3,
        rank=8,
        kinds=KINDS,
        shutdown_grace_s=0,
    )


@pytest.fixture
async def engine(options: EngineOptions) -> AsyncIterator[TransformersEngine]:
    """A started engine, closed after the test."""
    async with started(options) as one:
        yield one


@asynccontextmanager
async def started(options: EngineOptions) -> AsyncIterator[TransformersEngine]:
    engine = await TransformersEngine.start(options)
    try:
        yield engine
    finally:
        await engine.close()


async def said(engine: TransformersEngine, prompt: Prompt, sampling: Sampling | None = None) -> list[Delta]:
    """All deltas of one request; greedy, if nothing else is wanted."""
    async with aclosing(engine.generate(prompt, sampling or Sampling(TOKENS))) as deltas:
        return [delta async for delta in deltas]


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


class Plain:
    """What is right: Transformers' and PEFT's own `generate`, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def model(self, adapter: AdapterVersion | None = None) -> Any:
        """The base model, or the base model with one adapter."""
        model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        return (PeftModel.from_pretrained(model, str(adapter.path)) if adapter else model).eval()

    def tokens(self, prompt: Prompt, *, count: int = TOKENS, seed: int = 0, **how: Any) -> list[int]:
        """What `generate` adds to a prompt."""
        ids = torch.tensor([prompt.token_ids])
        how = {"do_sample": False} | how
        model = self.model(prompt.adapter)
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, pad_token_id=0, **how
            )
        found: list[int] = out[0, ids.shape[1] :].tolist()
        return found

    def text(self, numbers: list[int]) -> str:
        """Tokens, decoded in one piece."""
        return str(self.tokenizer.decode(numbers, skip_special_tokens=True))


@pytest.fixture(scope="session")
def plain(wordy_model: Path) -> Plain:
    """Transformers and PEFT by themselves."""
    return Plain(wordy_model)


async def test_greedy_answers_are_those_of_peft_alone_and_mixed(
    engine: TransformersEngine, plain: Plain, version: Version
) -> None:
    """Base and adapters of several ranks and layers answer as under `generate`, alone and all in one batch."""
    adapters = [version("a", seed=1), version("b.c", seed=2, rank=8, kinds=KINDS), version("d", seed=3, rank=1)]
    for adapter in adapters:
        await engine.load(adapter)
    work = [Prompt(ids, adapter) for ids in PROMPTS for adapter in (None, *adapters)]
    wanted = [plain.tokens(prompt) for prompt in work]
    alone = [tokens(await said(engine, prompt)) for prompt in work]
    mixed = [tokens(deltas) for deltas in await asyncio.gather(*(said(engine, prompt) for prompt in work))]
    assert alone == wanted
    assert mixed == wanted
    for start in range(0, len(work), 4):
        assert len({tuple(one) for one in wanted[start : start + 4]}) == 4, "the adapters must not all say the same"


@pytest.mark.parametrize("family", ["absolute positions", "no positions"])
async def test_other_families_of_models(
    options: EngineOptions, fast_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    """Prompts of several lengths share a batch rightly also where positions are absolute, or no argument at all."""
    shape = {"vocab_size": 400, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False, "bos_token_id": 1}
    model = (
        GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=64, eos_token_id=2, **shape))
        if family == "absolute positions"
        else BloomForCausalLM(BloomConfig(hidden_size=64, eos_token_id=2, **shape))
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    fast_tokenizer.save_pretrained(tmp_path)
    plain = Plain(tmp_path)
    async with started(msgspec.structs.replace(options, model=tmp_path, slots=0, kinds=())) as engine:
        found = await asyncio.gather(*(said(engine, Prompt(ids)) for ids in (PROMPTS[0], *PROMPTS)))
        scores = await engine.score(Prompt(PROMPTS[0]))
    wanted = [plain.tokens(Prompt(ids)) for ids in PROMPTS]
    assert [tokens(deltas) for deltas in found[1:]] == wanted
    assert len({tuple(one) for one in wanted}) == len(PROMPTS)
    assert len(scores) == len(PROMPTS[0]) - 1


async def test_rows_of_one_batch_end_when_they_have_to(engine: TransformersEngine, plain: Plain) -> None:
    """Rows of one batch that end after different numbers of tokens leave the others as they were."""
    work = [(Prompt(ids), count) for ids in PROMPTS for count in (1, 2, 5, TOKENS)]
    found = await asyncio.gather(*(said(engine, prompt, Sampling(count)) for prompt, count in work))
    assert [tokens(deltas) for deltas in found] == [plain.tokens(prompt, count=count) for prompt, count in work]


async def test_text_is_given_in_pieces(engine: TransformersEngine, plain: Plain) -> None:
    """The pieces of an answer are its tokens' text, one token each, and the last alone says why it ended."""
    deltas = await said(engine, Prompt(PROMPTS[0]))
    assert [len(delta.token_ids) for delta in deltas] == [1] * TOKENS
    assert text(deltas) == plain.text(tokens(deltas)).rstrip("�")
    assert sum(bool(delta.text) for delta in deltas) > 3
    assert [delta.finish_reason for delta in deltas] == [None] * (TOKENS - 1) + ["length"]


@pytest.mark.parametrize("listed", [True, False])
async def test_the_end_token_ends_an_answer(
    options: EngineOptions, plain: Plain, tmp_path: Path, *, listed: bool
) -> None:
    """An end token, the tokenizer's or one of several in generation_config.json, is counted and not shown."""
    whole = plain.tokens(Prompt(PROMPTS[0]))
    end = next(
        number
        for at, number in enumerate(whole)
        if at > 2 and number not in whole[:at] and "�" not in plain.text([number])
    )
    folder = tmp_path / "model"
    shutil.copytree(options.model, folder)
    if listed:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    else:
        (folder / "generation_config.json").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["eos_token"] = plain.tokenizer.convert_ids_to_tokens(end)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    async with started(msgspec.structs.replace(options, model=folder)) as engine:
        deltas = await said(engine, Prompt(PROMPTS[0]))
    assert tokens(deltas) == whole[: whole.index(end) + 1]
    assert text(deltas) == plain.text(whole[: whole.index(end)]).rstrip("�")
    assert (deltas[-1].text, deltas[-1].finish_reason) == ("", "stop")


@pytest.mark.parametrize("cut", [(5, 6), (5, 8), (3, 12)], ids=str)
async def test_stop_strings_end_an_answer(engine: TransformersEngine, cut: tuple[int, int]) -> None:
    """Nothing of a stop string is ever given, and the token that completes it is the last that counts."""
    free = await said(engine, Prompt(PROMPTS[0]))
    whole = text(free)
    stop = whole[slice(*cut)]
    at = whole.index(stop)
    deltas = await said(engine, Prompt(PROMPTS[0]), Sampling(TOKENS, stop=("never said", stop)))
    assert text(deltas) == whole[:at]
    assert deltas[-1].finish_reason == "stop"
    needed = next(count for count in range(1, TOKENS + 1) if stop in text(free[:count]))
    assert tokens(deltas) == tokens(free)[:needed]


async def test_what_only_began_a_stop_string_is_given_in_the_end(engine: TransformersEngine) -> None:
    """Text that was held back because it could begin a stop string is given once it turns out not to."""
    whole = text(await said(engine, Prompt(PROMPTS[0])))
    deltas = await said(engine, Prompt(PROMPTS[0]), Sampling(TOKENS, stop=(f"{whole[2:]}!", f"{whole[-3:]}!")))
    assert text(deltas) == whole
    assert deltas[-1].finish_reason == "length"
    assert any(delta.text == "" for delta in deltas)


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [(("abc", "b"), "a"), (("b", "abc"), "a"), (("ab", "b"), ""), (("b", "ab"), "a"), (("d",), "abc")],
)
def test_the_stop_string_that_is_complete_first_counts(
    fast_tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...], wanted: str
) -> None:
    """Of several stop strings, the one that is complete first cuts; of those, the first in the list, as in vLLM."""
    making = Text(fast_tokenizer.backend_tokenizer, (1,), stop)
    given = ""
    for letter in "abc":
        if not making.stopped:
            given += making.add(fast_tokenizer.convert_tokens_to_ids(letter))
    assert given + making.rest() == wanted


def test_half_a_character_is_never_given(fast_tokenizer: PreTrainedTokenizerFast) -> None:
    """Characters of several bytes, a token each, come out whole; one that is never finished does not come out."""
    making = Text(fast_tokenizer.backend_tokenizer, (1,), ())
    numbers = fast_tokenizer("aé🫀b🫀", add_special_tokens=False)["input_ids"]
    assert len(numbers) > 10
    assert [piece for number in numbers[:-1] if (piece := making.add(number))] == ["a", "é", "🫀", "b"]
    assert making.rest() == ""


def test_an_answer_begins_with_its_space() -> None:
    """Where a tokenizer leaves out the space before the first word, an answer's first word still has it."""
    tokenizer = Tokenizer(models.WordLevel({"▁question": 0, "▁answer": 1}))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([1]) == "answer"
    assert Text(tokenizer, (0,), ()).add(1) == " answer"


@pytest.mark.parametrize(
    ("sampling", "how"),
    [
        (Sampling(repetition_penalty=1.7), {"repetition_penalty": 1.7}),
        (Sampling(temperature=1.0, seed=5), {"do_sample": True}),
        (Sampling(temperature=0.6, seed=6), {"do_sample": True, "temperature": 0.6}),
        (Sampling(temperature=1.5, top_p=0.5, seed=7), {"do_sample": True, "temperature": 1.5, "top_p": 0.5}),
        (
            Sampling(temperature=0.9, top_p=0.8, repetition_penalty=1.3, seed=8),
            {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3},
        ),
    ],
    ids=str,
)
async def test_sampling_is_that_of_transformers(
    engine: TransformersEngine, plain: Plain, version: Version, sampling: Sampling, how: dict[str, Any]
) -> None:
    """With the same seed, every sampling parameter gives the tokens that `generate` draws, also beside other rows."""
    adapter = version("a", seed=1)
    await engine.load(adapter)
    prompt = Prompt(PROMPTS[0], adapter)
    wanted = plain.tokens(prompt, seed=sampling.seed or 0, top_k=0, **how)
    assert wanted != plain.tokens(prompt)
    sampling = msgspec.structs.replace(sampling, max_tokens=TOKENS)
    others = [said(engine, Prompt(ids), Sampling(TOKENS, temperature=1.0)) for ids in PROMPTS]
    found, *_ = await asyncio.gather(said(engine, prompt, sampling), *others)
    assert tokens(found) == wanted
    assert tokens(await said(engine, prompt, sampling)) == wanted


async def test_without_a_seed_answers_differ(engine: TransformersEngine) -> None:
    """Sampling without a seed gives each request another answer."""
    answers = [tokens(await said(engine, Prompt(PROMPTS[0]), Sampling(8, temperature=2.0))) for _ in range(4)]
    assert len({tuple(answer) for answer in answers}) > 1


async def test_scores_are_log_probabilities(engine: TransformersEngine, plain: Plain, version: Version) -> None:
    """A prompt's score is the log-softmax of the model's own logits, with and without an adapter."""
    adapter = version("a", seed=1)
    await engine.load(adapter)
    for prompt in (Prompt(PROMPTS[2]), Prompt(PROMPTS[2], adapter)):
        ids = torch.tensor([prompt.token_ids])
        with torch.inference_mode():
            logits = plain.model(prompt.adapter)(input_ids=ids).logits[0, :-1].log_softmax(-1)
        wanted = [float(row[number]) for row, number in zip(logits, prompt.token_ids[1:], strict=True)]
        assert await engine.score(prompt) == pytest.approx(wanted, abs=1e-4)
    assert await engine.score(Prompt((1,))) == ()
    assert await check_effect(engine, Prompt(PROMPTS[0], adapter)) > 0.01


class Gate:
    """Lets the worker make one step at a time; `steps` has the rows of each."""

    def __init__(self, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.caches: list[int] = []
        self.before: Callable[[], None] = lambda: None
        self._free = threading.Semaphore(0)
        forward = Model.forward

        def gated(model: Any, adapters: list[str], ids: Any, mask: Any, cache: Any = None) -> Any:
            self.steps.append(len(adapters))
            assert self._free.acquire(timeout=30)
            self.before()
            logits = forward(model, adapters, ids, mask, cache)
            self.caches.append(cache.layers[0].keys.shape[0])
            return logits

        monkeypatch.setattr(Model, "forward", gated)

    def allow(self, steps: int) -> None:
        """Let the worker make some more steps."""
        self._free.release(steps)


@pytest.fixture
def gate(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Hold the worker before each step."""
    return Gate(engine, monkeypatch)


@pytest.fixture
async def tasks() -> AsyncIterator[Callable[..., asyncio.Task[list[Delta]]]]:
    """Start requests in tasks of their own."""
    started: list[asyncio.Task[list[Delta]]] = []

    def start(work: Coroutine[Any, Any, list[Delta]]) -> asyncio.Task[list[Delta]]:
        started.append(asyncio.create_task(work))
        return started[-1]

    yield start
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


StartTask = Callable[..., asyncio.Task[list[Delta]]]


async def test_a_newcomer_does_not_wait_for_a_long_answer(
    engine: TransformersEngine, gate: Gate, tasks: StartTask, plain: Plain, until: Until
) -> None:
    """What comes while another is answered gets its tokens in turn with it, and both are right."""
    long = tasks(said(engine, Prompt(PROMPTS[0]), Sampling(60)))
    gate.allow(3)
    await until(lambda: len(gate.steps) == 4)
    short = tasks(said(engine, Prompt(PROMPTS[1]), Sampling(4)))
    await asyncio.sleep(0)
    gate.allow(9)
    assert tokens(await short) == plain.tokens(Prompt(PROMPTS[1]), count=4)
    assert not long.done()
    gate.allow(100)
    assert tokens(await long) == plain.tokens(Prompt(PROMPTS[0]), count=60)


async def test_requests_that_come_together_share_a_batch(
    engine: TransformersEngine, gate: Gate, tasks: StartTask, until: Until
) -> None:
    """Requests that came during one step are one batch from the next on."""
    running = [tasks(said(engine, Prompt(PROMPTS[0]), Sampling(2)))]
    await until(lambda: gate.steps == [1])
    running += [tasks(said(engine, Prompt(ids), Sampling(2))) for ids in PROMPTS]
    await asyncio.sleep(0)
    gate.allow(100)
    await asyncio.gather(*running)
    assert gate.steps == [1, 1, 3, 3]


async def test_closing_the_iterator_frees_the_row(
    engine: TransformersEngine, gate: Gate, tasks: StartTask, plain: Plain, until: Until
) -> None:
    """A request that is given up leaves its batch and its cache before the next step; the others end right."""
    blocker = tasks(said(engine, Prompt(PROMPTS[0]), Sampling(1)))
    await until(lambda: gate.steps == [1])
    stays = [tasks(said(engine, Prompt(ids))) for ids in (PROMPTS[0], PROMPTS[2])]
    async with aclosing(engine.generate(Prompt(PROMPTS[1]), Sampling(TOKENS))) as leaves:
        first = asyncio.ensure_future(anext(leaves))
        await asyncio.sleep(0)
        gate.allow(2)
        assert (await first).token_ids == (plain.tokens(Prompt(PROMPTS[1]))[0],)
        await until(lambda: len(gate.steps) == 3)
    gate.allow(100)
    for task, ids in zip(stays, (PROMPTS[0], PROMPTS[2]), strict=True):
        assert tokens(await task) == plain.tokens(Prompt(ids))
    await blocker
    assert gate.steps[:4] == [1, 3, 3, 2]
    assert gate.caches[:4] == [1, 3, 3, 2]


async def test_a_cancelled_request_is_given_up(
    engine: TransformersEngine, gate: Gate, tasks: StartTask, plain: Plain, until: Until
) -> None:
    """Cancelling the task that waits for an answer frees its row, and the engine goes on."""
    task = tasks(said(engine, Prompt(PROMPTS[0])))
    await until(lambda: gate.steps == [1])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.allow(100)
    assert tokens(await said(engine, Prompt(PROMPTS[1]), Sampling(3))) == plain.tokens(Prompt(PROMPTS[1]), count=3)
    assert gate.steps == [1, 1, 1, 1]


async def test_no_more_rows_than_allowed(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch, tasks: StartTask, until: Until
) -> None:
    """At most `max_num_seqs` rows are computed at a time; the others wait for their turn."""
    async with started(msgspec.structs.replace(options, max_num_seqs=2)) as engine:
        gate = Gate(engine, monkeypatch)
        blocker = tasks(said(engine, Prompt(PROMPTS[0]), Sampling(1)))
        await until(lambda: gate.steps == [1])
        running = [tasks(said(engine, Prompt(ids), Sampling(2))) for ids in (*PROMPTS, *PROMPTS)]
        await asyncio.sleep(0)
        gate.allow(100)
        await asyncio.gather(blocker, *running)
    assert gate.steps == [1, 2, 2, 2, 2, 2, 2]


async def test_a_request_says_how_long_it_waited(options: EngineOptions) -> None:
    """A request that waited for another's row says so; the one that had it waited for next to nothing."""
    waited = []
    async with started(msgspec.structs.replace(options, max_num_seqs=1)) as engine:

        async def ask() -> None:
            async with aclosing(engine.generate(Prompt(PROMPTS[0]), Sampling(8))) as deltas:
                waited.append({delta.queue_s async for delta in deltas})

        await asyncio.gather(ask(), ask())
    (first,), (second,) = waited
    assert first is not None
    assert second is not None
    assert second > first >= 0


async def test_versions_are_exchanged(engine: TransformersEngine, plain: Plain, version: Version) -> None:
    """Another version of an adapter is another adapter; unloading one leaves the other, and makes room."""
    old, new = version("a", seed=1), version("a", seed=2)
    await engine.load(old)
    await engine.load(old)
    await engine.load(new)
    assert tokens(await said(engine, Prompt(PROMPTS[0], old))) == plain.tokens(Prompt(PROMPTS[0], old))
    await engine.unload(old)
    await engine.unload(old)
    assert tokens(await said(engine, Prompt(PROMPTS[0], new))) == plain.tokens(Prompt(PROMPTS[0], new))
    assert tokens(await said(engine, Prompt(PROMPTS[0]))) == plain.tokens(Prompt(PROMPTS[0]))
    with pytest.raises(AdapterError, match="not loaded"):
        await said(engine, Prompt(PROMPTS[0], old))
    with pytest.raises(AdapterError, match="not loaded"):
        await engine.score(Prompt(PROMPTS[0], old))
    for seed in (3, 4):
        await engine.load(version("b", seed=seed))
    assert await weights(engine) == {"foundation", *await weights(engine, own=True)}
    assert len(await weights(engine, own=True)) == 3


async def weights(engine: TransformersEngine, *, own: bool = False) -> set[str]:
    """The names under which PEFT keeps weights; `own`: those of adapters that can be used."""
    if own:
        return set(await engine._worker.call(lambda rounds: list(rounds.model.adapters._names.values())))
    model = await engine._worker.call(lambda rounds: rounds.model.adapters.model)
    found = {
        name for module in model.modules() for name in (*getattr(module, "lora_A", ()), *getattr(module, "lora_B", ()))
    }
    return found | set(model.peft_config)


async def test_an_adapter_in_use_can_go_without_harm_to_others(
    engine: TransformersEngine, gate: Gate, tasks: StartTask, plain: Plain, version: Version, until: Until
) -> None:
    """Unloading an adapter that a request uses fails that request alone."""
    adapter = version("a", seed=1)
    await engine.load(adapter)
    blocker = tasks(said(engine, Prompt(PROMPTS[0]), Sampling(1)))
    await until(lambda: gate.steps == [1])
    user, other = tasks(said(engine, Prompt(PROMPTS[0], adapter))), tasks(said(engine, Prompt(PROMPTS[1])))
    await asyncio.sleep(0)
    gate.allow(2)
    await until(lambda: len(gate.steps) == 3)
    unloading = asyncio.ensure_future(engine.unload(adapter))
    await asyncio.sleep(0)
    gate.allow(100)
    await unloading
    with pytest.raises(AdapterError, match="unloaded"):
        await user
    assert tokens(await other) == plain.tokens(Prompt(PROMPTS[1]))
    await blocker


BREAK: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no configuration": lambda folder: (folder / "adapter_config.json").unlink(),
    "damaged weights": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no tensors"),
    "another shape": lambda folder: save_file(
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 65)},
        folder / "adapter_model.safetensors",
    ),
    "strange weights": lambda folder: save_file(
        {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)},
        folder / "adapter_model.safetensors",
    ),
    "another method": lambda folder: (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []})
    ),
    "no such layer": lambda folder: (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["w_proj"]})
    ),
}


@pytest.mark.parametrize("damage", BREAK)
async def test_a_refused_adapter_leaves_nothing(
    engine: TransformersEngine, plain: Plain, version: Version, damage: str
) -> None:
    """What PEFT can not load is refused by the adapter's name, leaves no weights, and does no harm to the others."""
    good, bad = version("good", seed=1), version("bad", seed=2)
    await engine.load(good)
    BREAK[damage](bad.path)
    with pytest.raises(AdapterError, match="`bad`"):
        await engine.load(bad)
    assert await weights(engine) == {"foundation", *await weights(engine, own=True)}
    assert len(await weights(engine, own=True)) == 1
    assert tokens(await said(engine, Prompt(PROMPTS[0], good))) == plain.tokens(Prompt(PROMPTS[0], good))
    await engine.load(version("bad", seed=2))


async def test_adapters_beyond_the_room_are_refused(engine: TransformersEngine, version: Version) -> None:
    """Too many adapters, too high a rank and unforeseen kinds of layer are refused, with the advice to restart."""
    for adapter in (version("a", rank=9), version("a", kinds=("q_proj", "k_proj"))):
        with pytest.raises(AdapterError, match="Restart"):
            await engine.load(adapter)
    for seed in range(engine.info.max_adapters):
        await engine.load(version("a", seed=seed))
    with pytest.raises(AdapterError, match=r"number 4.*Restart"):
        await engine.load(version("a", seed=9))


async def test_weights_for_fewer_layers_than_named(engine: TransformersEngine, plain: Plain, version: Version) -> None:
    """Layers that the configuration names and the weights leave out stay the base's, whatever their initialisation."""
    adapter = version("a", seed=1)
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    config |= {"target_modules": list(KINDS), "init_lora_weights": False}
    wanted = plain.tokens(Prompt(PROMPTS[0], adapter))
    (adapter.path / "adapter_config.json").write_text(json.dumps(config))
    await engine.load(adapter)
    assert tokens(await said(engine, Prompt(PROMPTS[0], adapter))) == wanted


async def test_an_engine_without_adapters(options: EngineOptions, plain: Plain, version: Version) -> None:
    """An engine that was started for the base alone answers with it, and refuses adapters."""
    async with started(msgspec.structs.replace(options, slots=0, rank=0, kinds=())) as engine:
        assert tokens(await said(engine, Prompt(PROMPTS[0]))) == plain.tokens(Prompt(PROMPTS[0]))
        with pytest.raises(AdapterError, match="Restart"):
            await engine.load(version("a"))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=0),
        Sampling(temperature=-0.1),
        Sampling(temperature=2.1),
        Sampling(temperature=float("nan")),
        Sampling(top_p=0.0),
        Sampling(top_p=1.1),
        Sampling(repetition_penalty=0.0),
        Sampling(seed=2**63),
        Sampling(stop=("a", "")),
    ],
    ids=str,
)
async def test_wrong_parameters_are_refused(engine: TransformersEngine, sampling: Sampling) -> None:
    """What vLLM refuses in a request's parameters is refused."""
    with pytest.raises(InvalidRequest):
        await said(engine, Prompt(PROMPTS[0]), sampling)


@pytest.mark.parametrize(
    ("ids", "kind"),
    [((), InvalidRequest), ((1, 400), InvalidRequest), ((1, -1), InvalidRequest), ((1,) * 256, PromptTooLong)],
)
async def test_wrong_prompts_are_refused(
    engine: TransformersEngine, ids: tuple[int, ...], kind: type[InvalidRequest]
) -> None:
    """Prompts that are empty, too long or of another vocabulary are refused, and the engine goes on."""
    with pytest.raises(kind):
        await said(engine, Prompt(ids))
    with pytest.raises(kind):
        await engine.score(Prompt(ids))
    assert len(await said(engine, Prompt(PROMPTS[0]), Sampling(2))) == 2


async def test_an_answer_ends_with_the_context(options: EngineOptions, engine: TransformersEngine) -> None:
    """Prompt and answer together fill the model's context, or what the operator allows of it, and no more."""
    assert engine.info.max_model_len == 256
    deltas = await said(engine, Prompt((1,) * 250), Sampling(100))
    assert (len(tokens(deltas)), deltas[-1].finish_reason) == (6, "length")
    async with started(msgspec.structs.replace(options, max_model_len=40)) as short:
        assert short.info.max_model_len == 40
        assert len(tokens(await said(short, Prompt((1,) * 30), Sampling(100)))) == 10


async def test_the_engine_tells_what_runs(options: EngineOptions, engine: TransformersEngine) -> None:
    """The engine's information is the options', with what was found out."""
    info = engine.info
    assert (info.engine, info.model, info.device, info.dtype) == ("transformers", "wordy", "cpu", "float32")
    assert (info.max_adapters, info.max_lora_rank, info.kinds) == (3, 8, KINDS)
    assert info.version == transformers_engine.version()
    await engine.check_health()
    async with started(msgspec.structs.replace(options, dtype="bfloat16")) as half:
        assert half.info.dtype == "bfloat16"
        assert len(await said(half, Prompt(PROMPTS[0]), Sampling(2))) == 2


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"quantization": "bitsandbytes"}, SettingsError),
        ({"dtype": "float8"}, SettingsError),
        ({"max_model_len": 257}, SettingsError),
        ({"kinds": ("w_proj",)}, ModelError),
        ({"model": Path("/nowhere")}, ModelError),
    ],
    ids=str,
)
async def test_an_engine_that_can_not_start(
    options: EngineOptions, change: dict[str, Any], kind: type[HLOError]
) -> None:
    """Options that can not be kept are refused at the start, and no thread stays."""
    with pytest.raises(kind):
        await TransformersEngine.start(msgspec.structs.replace(options, **change))
    assert not workers()


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "a tensor"])
async def test_an_incomplete_model_is_refused(options: EngineOptions, tmp_path: Path, missing: str) -> None:
    """A model's folder without tokenizer, weights, or one of the weights is refused."""
    folder = tmp_path / "model"
    shutil.copytree(options.model, folder)
    if missing == "a tensor":
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / missing).unlink()
    with pytest.raises(ModelError, match="model"):
        await TransformersEngine.start(msgspec.structs.replace(options, model=folder))


async def test_peft_is_asked_for_by_name(options: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PEFT there is no version, and starting names what to install."""
    found = importlib.metadata.version

    def without_peft(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    assert "peft" in str(transformers_engine.version())
    monkeypatch.setattr(importlib.metadata, "version", without_peft)
    assert transformers_engine.version() is None
    with pytest.raises(SettingsError, match=r"pip install 'hlo\[transformers\]'"):
        await TransformersEngine.start(options)


async def test_a_full_memory_fails_one_batch(
    engine: TransformersEngine, gate: Gate, tasks: StartTask, until: Until
) -> None:
    """A batch for which the memory does not suffice fails; the engine goes on."""

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gate.before = fail
    task = tasks(said(engine, Prompt(PROMPTS[0])))
    gate.allow(1)
    with pytest.raises(EngineError, match="memory is full"):
        await task
    gate.before = lambda: None
    gate.allow(2)
    assert len(await said(engine, Prompt(PROMPTS[0]), Sampling(2))) == 2


async def test_numbers_that_are_none_fail_one_request(
    engine: TransformersEngine, plain: Plain, version: Version
) -> None:
    """A request for which the model computes NaN fails alone, greedy or sampled; those beside it are answered."""
    adapter = version("a", seed=1)
    path = adapter.path / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    await engine.load(adapter)
    bad, sampled, good = await asyncio.gather(
        said(engine, Prompt(PROMPTS[0], adapter)),
        said(engine, Prompt(PROMPTS[1], adapter), Sampling(temperature=1.0)),
        said(engine, Prompt(PROMPTS[2])),
        return_exceptions=True,
    )
    assert isinstance(bad, EngineError)
    assert isinstance(sampled, EngineError)
    assert not isinstance(good, BaseException)
    assert tokens(good) == plain.tokens(Prompt(PROMPTS[2]))


async def test_a_dead_worker_is_told_to_all(
    engine: TransformersEngine,
    gate: Gate,
    tasks: StartTask,
    until: Until,
    caplog: pytest.LogCaptureFixture,
    version: Version,
) -> None:
    """When the worker dies, all who wait and all who come hear of it, and nothing of the error's text is told."""

    def fail() -> None:
        raise KeyError("my chest hurts")

    gate.before = fail
    running = [tasks(said(engine, Prompt(PROMPTS[0])))]
    await until(lambda: gate.steps == [1])
    running += [tasks(said(engine, Prompt(PROMPTS[1])))]
    loading = asyncio.ensure_future(engine.load(version("a")))
    await asyncio.sleep(0)
    gate.allow(1)
    errors = await asyncio.gather(*running, loading, return_exceptions=True)
    for work in (said(engine, Prompt(PROMPTS[0])), engine.check_health(), engine.score(Prompt(PROMPTS[0]))):
        with pytest.raises(EngineDead) as caught:
            await work
        errors.append(caught.value)
    assert [type(error) for error in errors] == [EngineDead] * 6
    assert all("KeyError" in str(error) for error in errors)
    assert all("chest" not in repr((error, error.__cause__, error.__context__)) for error in errors)  # type: ignore[union-attr]
    assert "KeyError" in caplog.text
    assert "chest" not in caplog.text
    await engine.close()


@pytest.mark.parametrize("where", ["Row", "Cohort"])
async def test_nobody_waits_for_a_worker_that_died_early(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A request that the worker dies of before its first step hears of it too."""
    monkeypatch.setattr(rounds, where, None)
    with pytest.raises(EngineDead, match="TypeError"):
        await said(engine, Prompt(PROMPTS[0]))


async def test_a_call_that_kills_the_worker_fails(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring that fails unforeseen is told as the worker's death."""
    monkeypatch.delattr(Model, "forward")
    with pytest.raises(EngineDead, match="AttributeError"):
        await engine.score(Prompt(PROMPTS[0]))


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hlo-transformers"]


async def test_close_leaves_nothing(options: EngineOptions) -> None:
    """After closing, twice and at the same time, there is no thread and no model; everything is refused."""
    engine = await TransformersEngine.start(options)
    model = weakref.ref(await engine._worker.call(lambda rounds: rounds.model.adapters.model))
    assert len(workers()) == 1
    await asyncio.gather(engine.close(), engine.close())
    await engine.close()
    assert workers() == []
    gc.collect()
    assert model() is None
    for work in (said(engine, Prompt(PROMPTS[0])), engine.score(Prompt(PROMPTS[0])), engine.check_health()):
        with pytest.raises(EngineDead, match="closed"):
            await work


@pytest.mark.parametrize(("grace_s", "reason"), [(60, "length"), (0, "abort")])
async def test_close_gives_running_requests_their_time(
    options: EngineOptions,
    monkeypatch: pytest.MonkeyPatch,
    tasks: StartTask,
    until: Until,
    grace_s: int,
    reason: str,
) -> None:
    """Running and waiting requests end within the grace period; without one they are cut off, with what they have."""
    options = msgspec.structs.replace(options, shutdown_grace_s=grace_s, max_num_seqs=1)
    async with started(options) as engine:
        gate = Gate(engine, monkeypatch)
        running = [tasks(said(engine, Prompt(ids), Sampling(5))) for ids in PROMPTS[:2]]
        gate.allow(2)
        await until(lambda: len(gate.steps) == 3)
        closing = asyncio.ensure_future(engine.close())
        await until(lambda: engine._worker._refusal)
        with pytest.raises(EngineDead):
            await said(engine, Prompt(PROMPTS[0]))
        gate.allow(100)
        first, second = await asyncio.gather(*running)
        await closing
    assert first[-1].finish_reason == second[-1].finish_reason == reason
    assert (len(tokens(first)), len(tokens(second))) == ((5, 5) if grace_s else (3, 0))


async def test_starting_can_be_given_up(options: EngineOptions, monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    """Cancelling the start waits for the loading to end, and leaves no thread behind."""
    free = threading.Event()
    read = loading.read_model

    def slow(options: EngineOptions) -> Any:
        assert free.wait(30)
        return read(options)

    monkeypatch.setattr(loading, "read_model", slow)
    start = asyncio.ensure_future(TransformersEngine.start(options))
    await until(workers)
    start.cancel()
    await asyncio.sleep(0)
    free.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert workers() == []


def test_importing_is_light() -> None:
    """Importing the engine and asking for its version imports none of the libraries."""
    probe = (
        "import sys\n"
        "from hlo.generation import transformers_engine\n"
        "transformers_engine.version()\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'peft'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
