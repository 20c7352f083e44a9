"""One `vllm serve`: what it must be, the adapters on it, and what it answers.

What goes wrong on it is `ServerFailed`, so that another can be asked; what is wrong with the request is an `HLOError`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, cast

from packaging.version import InvalidVersion, Version

from hlo.contracts import EngineOptions, ServerActivity, Servers
from hlo.errors import AdapterError, HLOError, InvalidRequest
from hlo.generation.admission import Admission
from hlo.generation.effect import measure
from hlo.generation.openai_engine import wire
from hlo.generation.openai_engine.client import Client
from hlo.generation.openai_engine.wire import AdapterUnknown, ServerFailed
from hlo.records import AdapterVersion, Delta, FinishReason, Prompt, Sampling

OLDEST = "0.32"
"""An older vLLM can answer with another adapter than was asked for, when one is loaded meanwhile."""

_WITHOUT_NULL = "0.33"  # from here on a request without an adapter is right beside others on a CPU, too
_TOGETHER = 1 << 20  # tokens that are sent at once, where nobody reads along
_PROBE = tuple(range(300, 332))  # any tokens that every model has
_SLOTS = re.compile(rb'vllm:lora_requests_info\{[^}]*max_lora="(\d+)"')


class VllmServer:
    """A server at `url`. It is `up` while requests may go to it; else `reason` says why not."""

    def __init__(self, url: str, servers: Servers, options: EngineOptions) -> None:
        self.url = url
        self.up = False
        self.reason = "it has not answered yet"
        self.refused: dict[str, AdapterError] = {}  # by the adapter's name in the engine
        self.running = 0
        self.requests: Counter[str] = Counter()
        self.version = ""
        self.max_model_len = 0
        self.slots: int | None = None  # adapters that it computes with at once, where it tells
        self.listed: frozenset[str] = frozenset()  # what it had, by name, when it was looked at
        self.base: tuple[float, ...] = ()  # what the base model makes of any tokens
        self.wake = asyncio.Event()
        self.admission = Admission(options.resident, options.turn_s)
        self._again: tuple[float, ...] = ()
        self._options = options
        self._model = ""
        self._null: AdapterVersion | None = None
        self._loads = 0
        self._loaded: set[str] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._client = Client(url, servers)

    @property
    def activity(self) -> ServerActivity:
        """What it did so far."""
        return ServerActivity(self.url, self.up, self.running, dict(self.requests), self._loads)

    def down(self, reason: str) -> None:
        """Send nothing to it until it has been looked at, which is to be soon."""
        self.up, self.reason = False, reason
        self.wake.set()

    async def connect(self) -> None:
        """Look at what it is, and forget what it had: it may have been started anew. Raises `ServerFailed`."""
        self.version = (await self._client.read("/version", wire.Version)).version
        if _older(self.version, OLDEST):
            raise ServerFailed(f"it is vLLM {self.version}; {OLDEST} or newer is wanted", refused=True)
        cards = (await self._client.read("/v1/models", wire.Cards)).data
        base = next((card for card in cards if card.parent is None), None)
        if base is None or base.max_model_len is None:
            raise ServerFailed("it lists no base model", refused=True)
        self._model, self.max_model_len = base.id, base.max_model_len
        self.listed = frozenset(card.id for card in cards)
        self._loaded.clear()
        self.refused.clear()
        self._null = self._options.null if _older(self.version, _WITHOUT_NULL) else None
        try:
            if self._null is not None:
                await self._give(self._null)
            name = self._name_of(None)
            self.base, self._again = await self._client.score(name, _PROBE), await self._client.score(name, _PROBE)
        except (HLOError, AdapterUnknown) as error:
            raise ServerFailed(str(error) or "it does not know its own base model", refused=True) from error
        await self._count_slots()

    async def check(self) -> None:
        """Raise `ServerFailed` unless it is well."""
        status, _ = await self._client.get("/health")
        if status != 200:
            raise ServerFailed(f"/health has the status {status}")

    async def load(self, adapter: AdapterVersion) -> None:
        """See to it that it has an adapter, and that this changes what it says.

        Raises `AdapterError`, which is kept in `refused`, or `ServerFailed`.
        """
        name = adapter.engine_name
        async with self._locks[name]:
            if name in self._loaded:
                return
            try:
                await self._give(adapter)
                measure(adapter.name, self.base, self._again, await self._client.score(name, _PROBE))
            except AdapterUnknown:
                raise ServerFailed(f"it has lost the adapter `{name}`") from None
            except InvalidRequest as error:
                raise ServerFailed(error.message, refused=True) from error
            except AdapterError as error:
                self.refused[name] = error
                raise
            self._loaded.add(name)

    def forget(self, adapter: AdapterVersion) -> None:
        """Use an adapter no more.

        The server keeps it. vLLM would free nothing by unloading it, and give it another number when it is loaded
        again, be it by another HLO: two numbers for one name in a batch kill the engine.
        """
        self._loaded.discard(adapter.engine_name)
        self.refused.pop(adapter.engine_name, None)

    async def complete(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Text as it is generated; closing the iterator closes the connection, upon which vLLM stops.

        Raises `ServerFailed`, `AdapterError`, `Overloaded` or `InvalidRequest`.
        """
        asked = time.monotonic()
        text, first_s = "", None
        tokens: tuple[int, ...] = ()
        self.running += 1
        try:
            async with (
                self.admission.turn(self._turn_of(prompt.adapter)),
                aclosing(self._choices(prompt, _body(prompt, sampling))) as choices,
            ):
                async for choice in choices:
                    first_s = time.monotonic() - asked if first_s is None else first_s
                    ids, reason = choice.token_ids or (), cast("FinishReason | None", choice.finish_reason)
                    if not prompt.whole:
                        yield Delta(choice.text, ids, reason)
                        continue
                    text, tokens = text + choice.text, tokens + ids
                    if reason is not None:
                        yield Delta(text, tokens, reason, first_s)
        finally:
            self.running -= 1

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Natural-log probabilities of the prompt's tokens after the first. Raises as `complete` does."""
        async with self.admission.turn(self._turn_of(prompt.adapter)):
            try:
                return await self._client.score(self._name_of(prompt.adapter), prompt.token_ids, dict(prompt.trace))
            except AdapterUnknown:
                await self._restore(prompt.adapter)
                return await self._client.score(self._name_of(prompt.adapter), prompt.token_ids, dict(prompt.trace))

    async def lets_load(self) -> bool:
        """Whether it takes adapters while it runs. Raises `ServerFailed`."""
        status, _ = await self._client.post("/v1/load_lora_adapter", {})
        return status not in (404, 405)

    async def close(self) -> None:
        """Close its connections."""
        self.up, self.reason = False, "HLO is stopping"
        await self._client.close()

    async def _choices(self, prompt: Prompt, body: Mapping[str, Any]) -> AsyncGenerator[wire.Choice, None]:
        """The pieces of a completion. A server that was started anew meanwhile is given the adapter again."""
        for again in (False, True):
            try:
                stream = self._client.stream(self._name_of(prompt.adapter), body, dict(prompt.trace))
                async with aclosing(stream) as choices:
                    async for choice in choices:
                        yield choice
                return
            except AdapterUnknown:
                if again:
                    raise ServerFailed("it does not know the adapter that it has just been given") from None
                await self._restore(prompt.adapter)

    async def _give(self, adapter: AdapterVersion) -> None:
        """Have it load an adapter, unless it has it. Raises `AdapterError` or `ServerFailed`."""
        name, path = adapter.engine_name, str(adapter.path.resolve())
        status, body = await self._client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if status == 200:
            self._loads += 1
            return
        if status in (401, 403):
            raise wire.refusal(status, wire.Fault())
        if name in {card.id for card in (await self._client.read("/v1/models", wire.Cards)).data}:
            return  # named when it was started, or loaded by another HLO: the name has the content's hash
        said = wire.fault(body).message.strip().splitlines()
        if status in (404, 405) and said in ([], ["Not Found"]):
            raise AdapterError(
                f"The server {self.url} has no adapter `{name}`, and lets none be loaded.",
                remedy=f"Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or with `--lora-modules {name}={path}`.",
            )
        raise AdapterError(
            f"The server {self.url} refused the adapter `{adapter.name}` ({adapter.sha256[:12]}): "
            f"{said[0] if said else f'status {status}'}",
            remedy=f"It must be able to read the folder `{path}` (HLO_CACHE_DIR), and be started with "
            f"--enable-lora and a --max-lora-rank of at least {adapter.rank}.",
        )

    async def _restore(self, adapter: AdapterVersion | None) -> None:
        """Give it what it should have: it was started anew."""
        wanted = adapter or self._null
        if wanted is None:
            raise ServerFailed(f"it serves `{self._model}` no more")
        self._loaded.discard(wanted.engine_name)
        await (self._give(wanted) if wanted is self._null else self.load(wanted))

    async def _count_slots(self) -> None:
        """How many adapters it computes with at once, as its metrics say once it has done anything (`--max-loras`).

        vLLM lets an adapter that waits for a place starve while those that have one are asked for. The adapter of
        zeros is one of them.
        """
        options = self._options
        found = _SLOTS.search((await self._client.get("/metrics"))[1])
        wanted = options.slots + (self._null is not None)
        self.slots = int(found[1]) if found else None
        slots = min(self.slots or wanted, options.resident or wanted)
        self.admission = Admission(slots if slots < wanted else None, options.turn_s)

    def _name_of(self, adapter: AdapterVersion | None) -> str:
        return self._turn_of(adapter) or self._model

    def _turn_of(self, adapter: AdapterVersion | None) -> str | None:
        wanted = adapter or self._null
        return None if wanted is None else wanted.engine_name


def _body(prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """A request, without the name of who is to write."""
    body = {
        "prompt": prompt.token_ids,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "stop": sampling.stop,
        # Said, since what is not said has the server's own default, from the model's generation_config.json.
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream": True,
        "return_token_ids": True,
    }
    return body | {"stream_interval": _TOGETHER} if prompt.whole else body


def _older(version: str, than: str) -> bool:
    try:
        return Version(version) < Version(than)
    except InvalidVersion:
        raise ServerFailed(f"its version is `{version[:40]}`, which is none", refused=True) from None
