"""The engine `transformers`: Transformers and PEFT in this process, where there is no vLLM. The only importer of peft.

One worker thread owns the model. Requests that come together are one cohort: a batch in which each row has its own
adapter. In each round every cohort makes one token for each of its rows, so a newcomer, who founds the next cohort,
never waits for a long answer to end. What a request gets (sampling, stop strings, counting of tokens, refusals) is what
`hlo.generation.vllm_engine` gives it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from hlo.contracts import EngineInfo, EngineOptions
from hlo.errors import (
    AdapterError,
    EngineDead,
    EngineError,
    HLOError,
    InvalidRequest,
    ModelError,
    Overloaded,
    SettingsError,
)
from hlo.generation import prompting
from hlo.records import AdapterVersion, Delta, FinishReason, Prompt, Sampling

logger = logging.getLogger("hlo")

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BASE = "__base__"  # PEFT's name for "no adapter" in a batch
_FOUNDATION = "foundation"
_MAX_ROWS = 32  # rows at a time where the operator sets no limit; their KV cache has to fit a laptop
_CONTEXT = 2048  # where a model's configuration has no limit; vLLM takes the same
_MIN_TEMPERATURE = 0.01  # below it, dividing by it can overflow; vLLM takes the same
_FIELD = "$"
_RESTART = "Restart HLO."


def version() -> str | None:
    """The versions of Transformers and PEFT that are installed, None without PEFT; imports nothing."""
    try:
        return f"{importlib.metadata.version('transformers')} (peft {importlib.metadata.version('peft')})"
    except importlib.metadata.PackageNotFoundError:
        return None


class TransformersEngine:
    """Transformers and PEFT behind HLO's `Engine` protocol. Made by `TransformersEngine.start`."""

    def __init__(self, worker: _Worker, info: EngineInfo, options: EngineOptions) -> None:
        self._worker = worker
        self._info = info
        self._options = options
        self._running = 0

    @classmethod
    async def start(cls, options: EngineOptions) -> TransformersEngine:
        """Load the model in the worker thread. `options.null` is not needed: base and adapters mix as they are.

        Raises `SettingsError`, `ModelError` or `EngineError`.
        """
        _check_options(options)
        worker = _Worker(options)
        try:
            info = await asyncio.wrap_future(worker.started)
        except BaseException:  # also when cancelled: loading can not be stopped, and what it makes must not stay behind
            await worker.stop(0)
            raise
        return cls(worker, info, options)

    @property
    def info(self) -> EngineInfo:
        """What is running, as the loaded model itself says."""
        return self._info

    async def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter between two steps of the worker. One that is given up while it loads may still be loaded."""
        await self._worker.call(lambda model: model.load(adapter))

    async def unload(self, adapter: AdapterVersion) -> None:
        """Delete an adapter's weights. A request that uses it all the same fails with `AdapterError`."""
        await self._worker.call(lambda model: self._worker.unload(model, adapter))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Stream text deltas, one a token; closing the iterator frees the request's row before the next step."""
        limit = self._options.max_queued_requests
        if limit is not None and self._running >= limit:
            raise Overloaded("The engine's queue is full.", remedy="Ask again in a few seconds.")
        sampling = self._fit(prompt, sampling)
        _check_sampling(sampling)
        loop = asyncio.get_running_loop()
        outbox: asyncio.Queue[Delta | HLOError] = asyncio.Queue()

        def send(piece: Delta | HLOError) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(outbox.put_nowait, piece)

        request = _Request(prompt, sampling, send)
        self._running += 1
        try:
            self._worker.submit(request)
            while True:
                piece = await outbox.get()
                if isinstance(piece, HLOError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.given_up = True
            self._running -= 1

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Natural-log probabilities, computed in float32, of the prompt's tokens after the first."""
        self._fit(prompt, Sampling())
        scores: tuple[float, ...] = await self._worker.call(lambda model: model.score(prompt))
        return scores

    async def check_health(self) -> None:
        """Raise `EngineDead` when the worker has stopped, or is about to."""
        self._worker.check()

    async def close(self) -> None:
        """Stop the worker, giving running requests the grace period; the model is freed and no thread stays."""
        await self._worker.stop(self._options.shutdown_grace_s)

    def _fit(self, prompt: Prompt, sampling: Sampling) -> Sampling:
        """Check a prompt, and shorten `max_tokens` to what the context leaves."""
        if not prompt.token_ids:
            raise InvalidRequest("The prompt is empty.", field=_FIELD, remedy="Send at least one token.")
        return prompting.fit(prompt, sampling, self._info.max_model_len, field=_FIELD)


class _Text:
    """Makes text of tokens as they come, up to a stop string; never gives half a character."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that can be given now; what could begin a stop string is held back."""
        text = self._held + self._decode(token)
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found, key=lambda one: one[0])[1]]  # what is complete first, as in vLLM
        begun = (length for stop in self._stop for length in range(1, len(stop)) if text.endswith(stop[:length]))
        cut = len(text) - max(begun, default=0)
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """Text that was held back, for when no more comes."""
        held, self._held = self._held, ""
        return held

    def _decode(self, token: int) -> str:
        from tokenizers.decoders import DecodeStream

        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:  # the library raises a bare one
            if not str(error).startswith("Invalid prefix encountered"):
                raise
            # Bytes that are no UTF-8 can break the stream's state; vLLM begins a new one too (vLLM issue #17448).
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""


class _Request:
    """What one caller of `generate` waits for."""

    def __init__(self, prompt: Prompt, sampling: Sampling, send: Callable[[Delta | HLOError], None]) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.send = send
        self.given_up = False


class _Row:
    """A request in the worker's hands. `adapter` is PEFT's name; `ids` are prompt and answer so far."""

    def __init__(self, request: _Request, model: _Model) -> None:
        model.check_tokens(request.prompt)
        self.request = request
        self.adapter = model.peft_name(request.prompt.adapter)
        self.ids = list(request.prompt.token_ids)
        self.done = False
        self._last = len(self.ids) + request.sampling.max_tokens
        self._eos = model.eos
        self._text = _Text(model.tokenizer, request.prompt.token_ids, request.sampling.stop)
        self._processors = _processors(request.sampling)
        self._generator = _generator(request.sampling)

    def choose(self, logits: Any, best: int) -> int:
        """The next token, from its logits (vocabulary,); `best` is the likeliest."""
        import torch

        if not self._processors:
            return best
        logits = self._processors(torch.tensor([self.ids]), logits.float().cpu()[None])
        if self._generator is None:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=self._generator))

    def take(self, token: int) -> None:
        """Add a token to the answer and send what it says. The last token counts, also when it is never shown."""
        self.ids.append(token)
        ended = token in self._eos
        text = "" if ended else self._text.add(token)
        reason: FinishReason | None = None
        if ended or self._text.stopped:
            reason = "stop"
        elif len(self.ids) >= self._last:
            reason = "length"
        if reason is not None:
            self.done = True
            text += self._text.rest()
        self.request.send(Delta(text, (token,), reason))

    def fail(self, error: HLOError) -> None:
        """End with an error."""
        self.done = True
        self.request.send(error)

    def abort(self) -> None:
        """End here, with what was held back."""
        self.done = True
        self.request.send(Delta(self._text.rest(), (), "abort"))


class _Model:
    """The loaded model and its adapters. Used by the worker thread alone."""

    def __init__(self, options: EngineOptions) -> None:
        tokenizer = _read_tokenizer(options.model)
        base = _read_model(options)
        self.tokenizer = tokenizer.backend_tokenizer
        self.config = base.config
        self.device = base.device
        self.eos = _eos(base, tokenizer)
        self._vocabulary = base.get_input_embeddings().num_embeddings
        self._options = options
        self._numbers = itertools.count(1)
        self._names: dict[str, str] = {}
        self._adapted = bool(options.kinds)
        self._model = _with_foundation(base, options) if self._adapted else base
        self.info = EngineInfo(
            engine="transformers",
            version=version() or "unknown",
            model=options.name,
            device=options.device,
            dtype=str(base.dtype).removeprefix("torch."),
            quantization="none",
            eager=True,
            max_model_len=_context(base.config, tokenizer, options),
            max_adapters=options.slots,
            max_lora_rank=options.rank,
            kinds=options.kinds,
        )

    def forward(self, adapters: list[str], ids: Any, mask: Any, cache: Any = None) -> Any:
        """Logits: of the last position, (rows, 1, vocabulary), with a `cache`; of all positions without.

        `ids` are (rows, new tokens); `mask` is 0 where a row is padded on the left, (rows, tokens so far).
        """
        import torch

        # A few architectures leave both of these unread: they find positions by themselves, and give all logits.
        arguments = {
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            "logits_to_keep": 0 if cache is None else 1,
        }
        if self._adapted:
            arguments["adapter_names"] = adapters
        with torch.inference_mode():
            output = self._model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **arguments
            )
        return output.logits if cache is None else output.logits[:, -1:]

    def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Log-probabilities of the prompt's tokens after the first."""
        import torch

        self.check_tokens(prompt)
        ids = torch.tensor([prompt.token_ids], device=self.device)
        try:
            logits = self.forward([self.peft_name(prompt.adapter)], ids, torch.ones_like(ids))
            scores = logits[0, :-1].float().log_softmax(dim=-1)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory() from error
        return tuple(scores.gather(-1, ids[0, 1:, None])[:, 0].tolist())

    def check_tokens(self, prompt: Prompt) -> None:
        """Refuse tokens that would index past the end of the embeddings, which a GPU does not survive."""
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < self._vocabulary:
            raise InvalidRequest(
                f"The prompt holds a token that is none of the model's {self._vocabulary}.",
                field=_FIELD,
                remedy="Use the tokenizer of this base model.",
            )

    def peft_name(self, adapter: AdapterVersion | None) -> str:
        """PEFT's name of a loaded adapter."""
        if adapter is None:
            return _BASE
        name = self._names.get(adapter.engine_name)
        if name is None:
            raise AdapterError(f"The adapter `{adapter.engine_name}` is not loaded.", remedy="Load it before using it.")
        return name

    def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter under a number of its own: PEFT takes no name with a dot in it."""
        if adapter.engine_name in self._names:
            return
        self._check_room(adapter)
        name = f"adapter{next(self._numbers)}"
        try:
            strays = self._add(adapter.path.resolve(), name)
        except Exception as error:  # PEFT has no errors of its own
            self._remove(name)
            raise AdapterError(
                f"PEFT refused the adapter `{adapter.name}` ({adapter.sha256[:12]}): {error}",
                remedy="Check that it was trained on this base model.",
            ) from error
        if strays:
            self._remove(name)
            raise AdapterError(
                f"The adapter `{adapter.name}` ({adapter.sha256[:12]}) has weights that PEFT finds no place for, such "
                f"as `{strays[0]}`.",
                remedy="Check that it was trained on this base model.",
            )
        self._names[adapter.engine_name] = name

    def unload(self, adapter: AdapterVersion) -> str | None:
        """Delete an adapter; returns the name that PEFT had for it."""
        name = self._names.pop(adapter.engine_name, None)
        if name is not None:
            self._remove(name)
        return name

    def _check_room(self, adapter: AdapterVersion) -> None:
        """The same limits as vLLM's, which makes room when it starts: what fits one engine fits the other."""
        strange = sorted(set(adapter.modules) - set(self._options.kinds))
        if len(self._names) >= self._options.slots:
            wrong = (
                f"would be number {len(self._names) + 1}; the engine was started with room for {self._options.slots}"
            )
        elif adapter.rank > self._options.rank:
            wrong = f"has rank {adapter.rank}; the engine was started for ranks up to {self._options.rank}"
        elif strange:
            wrong = f"touches layers of the kind `{strange[0]}`; the engine was started without adapters on those"
        else:
            return
        raise AdapterError(
            f"The adapter `{adapter.name}` {wrong}.", remedy="Restart HLO, so that the engine makes room for it."
        )

    def _add(self, folder: Path, name: str) -> list[str]:
        """Put an adapter's weights into the model; returns the names of those that have no place there."""
        from peft import LoraConfig, set_peft_model_state_dict
        from safetensors.torch import load_file

        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        config.init_lora_weights = True  # layers without weights do nothing, whatever the training began with
        weights = load_file(folder / "adapter_model.safetensors", device=str(self.device))
        self._model.add_adapter(name, config)
        result = set_peft_model_state_dict(self._model, weights, adapter_name=name)
        self._model.eval()
        return list(result.unexpected_keys)

    def _remove(self, name: str) -> None:
        """Take an adapter out of every layer; PEFT's own `delete_adapter` knows nothing of one that failed half-way."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self._model.modules():
            if isinstance(module, BaseTunerLayer):
                module.delete_adapter(name)
        self._model.peft_config.pop(name, None)


class _Cohort:
    """Requests that are one batch, padded on the left, from their first step to their last."""

    def __init__(self, rows: list[_Row], model: _Model) -> None:
        import torch
        from transformers import DynamicCache

        self.rows = rows
        self._model = model
        self._cache = DynamicCache(config=model.config)
        longest = max(len(row.ids) for row in rows)
        gaps = [longest - len(row.ids) for row in rows]
        self._ids = torch.tensor(
            [[0] * gap + row.ids for gap, row in zip(gaps, rows, strict=True)], device=model.device
        )
        self._mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=model.device)

    def step(self) -> None:
        """Make one token for every row. Rows that nobody waits for leave before, rows that end leave after."""
        import torch

        self.drop(lambda row: row.request.given_up)
        if not self.rows:
            return
        logits = self._model.forward([row.adapter for row in self.rows], self._ids, self._mask, self._cache)[:, -1]
        tokens = []
        for row, best, scores, wrong in zip(
            self.rows, logits.argmax(-1).tolist(), logits, logits.isnan().any(-1).tolist(), strict=True
        ):
            if wrong:
                row.fail(
                    EngineError(
                        "The model computed values that are no numbers for this request.",
                        remedy="Set HLO_DTYPE=float32 if it is float16; check the adapter.",
                    )
                )
                tokens.append(0)
                continue
            tokens.append(row.choose(scores, best))
            row.take(tokens[-1])
        self._ids = torch.tensor(tokens, device=self._model.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self.drop(lambda row: row.done)

    def drop(self, leaves: Callable[[_Row], bool]) -> None:
        """Let rows leave, with their part of the KV cache."""
        import torch

        stay = [number for number, row in enumerate(self.rows) if not leaves(row)]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in stay]
        if self.rows:
            indices = torch.tensor(stay, device=self._model.device)
            self._cache.batch_select_indices(indices)
            self._ids, self._mask = self._ids[indices], self._mask[indices]


class _Call:
    """Work for the worker between two steps."""

    def __init__(self, work: Callable[[_Model], Any]) -> None:
        self.work = work
        self.done: Future[Any] = Future()

    def fail(self, error: HLOError) -> None:
        """Tell the caller, unless that one has gone."""
        if self.done.running() or self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class _Worker:
    """The thread that owns the model, and the only way to it. `started` has the engine's information, or the error."""

    def __init__(self, options: EngineOptions) -> None:
        self.started: Future[EngineInfo] = _uncancellable()
        self._finished: Future[None] = _uncancellable()
        self._options = options
        self._inbox: queue.SimpleQueue[_Request | _Call | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # guards `_refusal`: once it is there, nothing comes into the inbox
        self._refusal: str | None = None
        self._grace_s: float = 0
        self._deadline: float | None = None
        self._hand: _Request | _Call | None = None  # what was taken from the inbox and stands nowhere else yet
        self._waiting: list[_Row] = []
        self._cohorts: list[_Cohort] = []
        # A daemon: an engine that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="hlo-transformers", daemon=True)
        self._thread.start()

    def submit(self, item: _Request | _Call) -> None:
        """Hand something to the worker. Raises `EngineDead` when it takes nothing any more."""
        with self._gate:
            self.check()
            self._inbox.put(item)

    async def call(self, work: Callable[[_Model], Any]) -> Any:
        """Have `work` done between two steps; what has not begun when the caller gives up is not done."""
        call = _Call(work)
        self.submit(call)
        return await asyncio.wrap_future(call.done)

    def check(self) -> None:
        """Raise `EngineDead` when the worker takes nothing any more."""
        if self._refusal is not None:
            raise EngineDead(self._refusal, remedy=_RESTART)

    async def stop(self, grace_s: float) -> None:
        """Let running requests end for `grace_s` seconds, cut off the others, and wait for the thread's end."""
        with self._gate:
            if self._refusal is None:
                self._refusal, self._grace_s = "The engine was closed.", grace_s
                self._inbox.put(None)
        await asyncio.wrap_future(self._finished)
        self._thread.join()

    def unload(self, model: _Model, adapter: AdapterVersion) -> None:
        """Delete an adapter, and fail what uses it against the contract: PEFT would fail all that shares its batch."""
        name = model.unload(adapter)
        for row in self._rows():
            if row.adapter == name:
                row.fail(AdapterError(f"The adapter `{adapter.name}` was unloaded.", remedy="Ask again."))
        self._waiting = [row for row in self._waiting if not row.done]
        for cohort in self._cohorts:
            cohort.drop(lambda row: row.done)

    def _run(self) -> None:
        try:
            import torch

            torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
            model = _Model(self._options)
        except BaseException as error:  # the one who starts the engine must hear of it, whatever it is
            self._end(_obituary(error))
            self.started.set_exception(error)
        else:
            self.started.set_result(model.info)
            try:
                self._serve(model)
            except BaseException as error:  # so must all who wait
                logger.error(_obituary(error))
                self._end(_obituary(error))
            else:
                self._end(None)
        self._finished.set_result(None)

    def _serve(self, model: _Model) -> None:
        """Rounds of one step for each cohort, until told to stop."""
        import torch

        while True:
            self._receive(model, wait=self._deadline is None and not self._rows())
            if self._deadline is not None and (not self._rows() or time.monotonic() >= self._deadline):
                return
            self._found_cohort(model)
            for cohort in self._cohorts:
                try:
                    cohort.step()
                except torch.OutOfMemoryError:
                    for row in cohort.rows:
                        row.fail(_out_of_memory())
                    cohort.rows = []
            self._cohorts = [cohort for cohort in self._cohorts if cohort.rows]

    def _rows(self) -> list[_Row]:
        return [*self._waiting, *(row for cohort in self._cohorts for row in cohort.rows)]

    def _receive(self, model: _Model, *, wait: bool) -> None:
        """Take all that has come in; `wait` for the first."""
        while True:
            try:
                self._hand = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if self._hand is None:
                self._deadline = time.monotonic() + self._grace_s
            elif isinstance(self._hand, _Call):
                self._do(self._hand, model)
            else:
                self._admit(self._hand, model)
            self._hand = None

    def _do(self, call: _Call, model: _Model) -> None:
        if call.done.set_running_or_notify_cancel():
            try:
                call.done.set_result(call.work(model))
            except HLOError as error:
                call.fail(error)

    def _admit(self, request: _Request, model: _Model) -> None:
        try:
            self._waiting.append(_Row(request, model))
        except HLOError as error:
            request.send(error)

    def _found_cohort(self, model: _Model) -> None:
        """Make a batch of those who wait, as far as there is room."""
        room = (self._options.max_num_seqs or _MAX_ROWS) - sum(len(cohort.rows) for cohort in self._cohorts)
        self._waiting = [row for row in self._waiting if not row.request.given_up]
        if rows := self._waiting[:room]:
            self._cohorts.append(_Cohort(rows, model))
            del self._waiting[:room]  # not before: no row may stand nowhere when something fails

    def _end(self, refusal: str | None) -> None:
        """Let nothing in any more, and tell all who wait: they are cut off, or the worker died of `refusal`."""
        with self._gate:
            self._refusal = self._refusal or refusal
        for row in self._rows():
            if refusal is None:
                row.abort()
            else:
                row.fail(EngineDead(refusal, remedy=_RESTART))
        self._waiting.clear()
        self._cohorts.clear()
        while self._hand is not None or not self._inbox.empty():
            item = self._hand or self._inbox.get()
            self._hand = None
            dead = EngineDead(self._refusal or "", remedy=_RESTART)
            if isinstance(item, _Call):
                item.fail(dead)
            elif item is not None:
                item.send(dead)


def _uncancellable() -> Future[Any]:
    """A future that goes on when a coroutine that waits for it is cancelled."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _obituary(error: BaseException) -> str:
    """What the worker died of, and where. Not the error's own text: it may quote the prompt."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"The engine's worker stopped: {type(error).__name__} in {Path(last.filename).name}, line {last.lineno}."


def _out_of_memory() -> EngineError:
    return EngineError(
        "The device's memory is full.", remedy="Ask again; lower HLO_MAX_NUM_SEQS or HLO_MAX_MODEL_LEN if it recurs."
    )


def _processors(sampling: Sampling) -> Any:
    """What changes logits before a token is chosen, in vLLM's order; empty where the likeliest token is taken."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature > 0:
        found.append(TemperatureLogitsWarper(max(float(sampling.temperature), _MIN_TEMPERATURE)))
        if sampling.top_p < 1:
            found.append(TopPLogitsWarper(sampling.top_p))
    return found


def _generator(sampling: Sampling) -> Any:
    """A request's own source of chance, None when it needs none. On the CPU, so that a seed means the same anywhere."""
    import torch

    if sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _check_options(options: EngineOptions) -> None:
    if version() is None:
        raise SettingsError(
            "HLO_ENGINE=transformers needs the package `peft`.", remedy="`pip install 'hlo[transformers]'`."
        )
    if options.quantization != "none":
        raise SettingsError(
            f"The engine `transformers` can not quantise (HLO_QUANTIZATION={options.quantization}).",
            remedy="Set HLO_QUANTIZATION=none and unset QUANTIZE, or use the engine `vllm`.",
        )
    if options.dtype not in _DTYPES:
        raise SettingsError(
            f"HLO_DTYPE={options.dtype} is no precision.", remedy=f"Choose one of {', '.join(_DTYPES)}."
        )


def _check_sampling(sampling: Sampling) -> None:
    """Refuse what vLLM refuses (vllm/sampling_params.py)."""
    rules = (
        (sampling.max_tokens >= 1, "max_tokens must be at least 1"),
        (0 <= sampling.temperature <= 2, "temperature must be in [0, 2]"),
        (0 < sampling.top_p <= 1, "top_p must be in (0, 1]"),
        (0 < sampling.repetition_penalty < float("inf"), "repetition_penalty must be above 0"),
        (sampling.seed is None or -(2**63) <= sampling.seed < 2**63, "seed must fit 64 bits"),
        (all(sampling.stop), "stop must hold no empty string"),
    )
    for kept, rule in rules:
        if not kept:
            raise InvalidRequest(f"{rule}.", field=_FIELD, remedy="Mend that parameter.")


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise ModelError(
            f"No tokenizer can be read in `{folder}`: {error}",
            remedy="The folder needs tokenizer.json and tokenizer_config.json.",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer in `{folder}` is not a fast one.", remedy="HLO needs `tokenizer.json`; convert it once."
        )
    return tokenizer


def _read_model(options: EngineOptions) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(options.model), dtype=dtype, local_files_only=True, output_loading_info=True
        )
        model = model.to(options.device).eval()
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"`{options.model}` does not fit the memory of `{options.device}`.",
            remedy="Set HLO_DTYPE=bfloat16 or HLO_DEVICE=cpu, or choose a smaller model.",
        ) from error
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise ModelError(
            f"Transformers can not load `{options.model}`: {error}", remedy="`hlo doctor` helps."
        ) from error
    if missing := sorted(report["missing_keys"]):  # Transformers would go on with random numbers there
        raise ModelError(
            f"`{options.model}` lacks {len(missing)} of the model's weights, such as `{missing[0]}`.",
            remedy="Fetch the model again.",
        )
    return model


def _with_foundation(base: Any, options: EngineOptions) -> Any:
    """Wrap the model for PEFT, with an adapter that no request uses: PEFT has no model without one."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=1, target_modules=list(options.kinds), task_type="CAUSAL_LM", inference_mode=True)
    try:
        return get_peft_model(base, config, adapter_name=_FOUNDATION).eval()
    except ValueError as error:
        raise ModelError(
            f"PEFT can not adapt `{options.model}` on {', '.join(options.kinds)}: {error}",
            remedy="Check that the adapters are for this base model.",
        ) from error


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json, as vLLM takes them."""
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset(number for number in (*listed, tokenizer.eos_token_id) if number is not None)


def _context(config: Any, tokenizer: Any, options: EngineOptions) -> int:
    """The longest prompt plus answer, in tokens."""
    configured = getattr(config.get_text_config(), "max_position_embeddings", None) or _CONTEXT
    possible = int(min(configured, tokenizer.model_max_length))
    if options.max_model_len is not None and options.max_model_len > possible:
        raise SettingsError(
            f"HLO_MAX_MODEL_LEN={options.max_model_len}, but `{options.name}` takes {possible} tokens at most.",
            remedy=f"Set it to {possible} or less, or leave it out.",
        )
    return options.max_model_len or possible
