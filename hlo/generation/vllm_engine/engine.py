"""The engine `vllm` itself: requests and adapters in, text out, vLLM's errors told as HLO's.

vLLM runs its model in a child process; this one tokenises, detokenises and speaks HTTP. What vLLM does with adapters
that do not fit, with names that are used twice, and with batches that mix adapters and base on a CPU is told where
each is guarded against below.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from hlo.contracts import EngineActivity, EngineInfo, EngineOptions
from hlo.errors import AdapterError, EngineDead, EngineError, InvalidRequest, Overloaded, SettingsError
from hlo.generation.admission import Admission
from hlo.generation.room import check_room
from hlo.generation.vllm_engine.copies import Copies
from hlo.generation.vllm_engine.installed import version
from hlo.generation.vllm_engine.pulse import Pulse
from hlo.generation.vllm_engine.quantized import plan
from hlo.generation.vllm_engine.starting import WORKER, abandon, construct, environment
from hlo.generation.vllm_engine.weights import Weights, verify
from hlo.records import AdapterVersion, Delta, FinishReason, Prompt, Sampling

_READING_S = 0.01  # between two looks at whether an adapter is read


class VllmEngine:
    """vLLM behind HLO's `Engine` protocol. Made by `VllmEngine.start`."""

    def __init__(self, llm: Any, options: EngineOptions, quantization: str, weights: Weights) -> None:
        self._llm = llm
        self._options = options
        self._ids = itertools.count(1)
        self._requests = itertools.count(1)
        self._loras: dict[str, Any] = {}
        self._known: dict[str, Any] = {}
        self._closed = False
        self._admission = Admission(options.resident, options.turn_s)
        self._pulse = Pulse(llm, options.stall_s)
        config = llm.vllm_config
        self._copies = Copies(int(config.parallel_config.data_parallel_size))
        self._traced = config.observability_config.otlp_traces_endpoint is not None
        self._info = EngineInfo(
            engine="vllm",
            version=version() or "unknown",
            model=options.name,
            device=options.device,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            quantization=str(config.model_config.quantization or "none") if quantization == "none" else quantization,
            eager=bool(config.model_config.enforce_eager),
            max_model_len=int(config.model_config.max_model_len),
            max_adapters=options.slots,
            max_lora_rank=int(config.lora_config.max_lora_rank) if config.lora_config else 0,
            kinds=options.kinds,
            weight_bytes=weights.size,
            linear_dtype=weights.dtype,
            linear_bits=weights.bits,
            reason=options.reason,
            max_num_seqs=config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size,
        )

    @classmethod
    async def start(cls, options: EngineOptions) -> VllmEngine:
        """Load the model and start the engine process; takes tens of seconds, in a thread of its own.

        Raises `SettingsError`, `ModelError` or `EngineError`.
        """
        if options.device == "cuda" and options.slots and options.dtype == "float32":
            raise SettingsError(
                "HLO_DTYPE=float32: vLLM's LoRA kernels compute in float16 and bfloat16 only on a GPU.",
                remedy="Set HLO_DTYPE to auto, bfloat16 or float16.",
            )
        made: list[Any] = []  # not the thread's return value: its future would keep the engine alive after `close`
        with environment(options):
            wanted = await asyncio.to_thread(plan, options)
            work = asyncio.to_thread(lambda: made.append(construct(options, wanted.arguments)))
            building = asyncio.ensure_future(work)
            try:
                await asyncio.shield(building)
            except asyncio.CancelledError:  # the thread can not be stopped; what it makes must not stay behind
                await abandon(building)
                for llm in made:
                    llm.shutdown(0)
                raise
        llm = made.pop()
        try:
            weights = verify(await llm.collective_rpc("hlo_weights"), wanted)
        except BaseException:
            await asyncio.to_thread(llm.shutdown, 0)
            raise
        engine = cls(llm, options, wanted.quantization, weights)
        del llm
        if options.null is not None:
            try:
                await engine.load(options.null)
            except BaseException:
                await engine.close()
                raise
        return engine

    @property
    def info(self) -> EngineInfo:
        """What is running, as vLLM's own configuration reports it."""
        return self._info

    @property
    def activity(self) -> EngineActivity:
        """What came of the turns that adapters take."""
        return self._admission.activity

    async def load(self, adapter: AdapterVersion) -> None:
        """Load and activate an adapter. The path, the name and the number are its own for ever.

        vLLM tells adapters apart by name and finds them by number, each in another place; one name with two numbers
        kills the engine, and one number with two paths serves the wrong weights.
        """
        if adapter.engine_name in self._loras:
            return
        if adapter is not self._options.null:
            loaded = len(self._loras) - (self._options.null is not None)
            check_room(adapter, self._options, loaded, self._info.max_lora_rank)
        from vllm.lora.request import LoRARequest

        request = self._known.get(adapter.engine_name) or LoRARequest(
            lora_name=adapter.engine_name, lora_int_id=next(self._ids), lora_path=str(adapter.path.resolve())
        )
        self._known[adapter.engine_name] = request
        try:
            await self._read_ahead(request)
            loaded = await self._llm.add_lora(request)
        except Exception as error:  # vLLM raises a bare Exception here, with the cause as text
            await self._forget(request.lora_int_id)
            await self.check_health()
            raise AdapterError(
                f"vLLM refused the adapter `{adapter.name}` ({adapter.sha256[:12]}): {error}",
                remedy="Check that it was trained on this base model.",
            ) from error
        if not loaded:
            await self._forget(request.lora_int_id)
            raise AdapterError(f"vLLM did not load the adapter `{adapter.name}`.", remedy="See vLLM's log.")
        self._loras[adapter.engine_name] = request

    async def unload(self, adapter: AdapterVersion) -> None:
        """Forget an adapter; its number and name stay its own, should it come back."""
        request = self._loras.pop(adapter.engine_name, None)
        if request is not None:
            await self._forget(request.lora_int_id)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Stream text deltas; closing the iterator aborts the request in the engine.

        A prompt that is wanted whole wakes this process once, not once for each token.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        try:
            parameters = SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed,
                stop=list(sampling.stop),
                output_kind=RequestOutputKind.FINAL_ONLY if prompt.whole else RequestOutputKind.DELTA,
            )
        except ValueError as error:
            raise InvalidRequest(str(error), field="$", remedy="Mend that parameter.") from error
        async with aclosing(self._run(prompt, parameters)) as outputs:
            queue_s = None
            async for held_s, output in outputs:
                piece = output.outputs[0]
                if queue_s is None:
                    queue_s = _since_asked(output.metrics, "scheduled_ts", held_s)
                yield Delta(
                    piece.text,
                    tuple(piece.token_ids),
                    _finish_reason(piece.finish_reason),
                    _since_asked(output.metrics, "first_token_ts", held_s) if prompt.whole else None,
                    output.num_cached_tokens or 0,
                    queue_s,
                )

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Natural-log probabilities of the prompt's tokens after the first; generates one token to get them."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        async with aclosing(self._run(prompt, parameters)) as outputs:
            async for _, output in outputs:
                rows = cast("list[dict[int, Any] | None]", output.prompt_logprobs)
                pairs = zip(prompt.token_ids[1:], rows[1:], strict=True)
                return tuple(float(row[token].logprob) for token, row in pairs if row is not None)
        raise EngineError("The engine returned nothing for a prompt.", remedy="See vLLM's log.")

    async def check_health(self) -> None:
        """Raise `EngineDead` when the engine process is gone; end it when it hangs, so that it soon is."""
        if self._closed or self._llm.errored:
            raise EngineDead("The engine process is gone.", remedy="Restart HLO; vLLM's log says why it died.")
        self._pulse.feel()

    async def close(self) -> None:
        """Stop the engine process, giving running requests the grace period; nothing is left behind."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._closed:
            return
        self._closed = True
        self._pulse.stop()
        llm, self._llm = self._llm, None
        if llm.errored:  # whoever still waits would do so for ever
            llm.output_processor.propagate_error(EngineDeadError())
        if llm.output_handler is not None:  # it would report the engine's planned end as a crash
            llm.output_handler.cancel()
        await asyncio.to_thread(llm.shutdown, self._options.shutdown_grace_s)
        del llm
        frozen = gc.get_freeze_count()
        gc.unfreeze()  # a server leaves what it made at start out of collections
        gc.collect()  # AsyncLLM's destructor must run while the interpreter is whole, or it prints a traceback
        if frozen:  # it may go on with another engine
            gc.freeze()

    async def _run(self, prompt: Prompt, parameters: Any) -> AsyncGenerator[tuple[float, Any], None]:
        """Run one request, with vLLM's errors told as HLO's: what comes of it, and how long it was held before."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        number, key = f"hlo-{next(self._requests)}", prompt.adapter.engine_name if prompt.adapter else None
        asked = time.perf_counter()
        try:
            async with self._admission.turn(key):
                await self.check_health()  # while it waited for its turn, the engine may have died and been closed
                (rendered,) = await self._llm.renderer.render_cmpl_async([{"prompt_token_ids": list(prompt.token_ids)}])
                with self._copies.take(key) as rank:
                    stream = self._llm.generate(
                        rendered,
                        parameters,
                        number,
                        lora_request=self._lora(prompt.adapter),
                        trace_headers=dict(prompt.trace) if self._traced else None,
                        data_parallel_rank=rank,
                    )
                    async with aclosing(stream) as outputs:
                        held_s = time.perf_counter() - asked
                        async for output in outputs:
                            yield held_s, output
        except VLLMValidationError as error:
            # Not vLLM's own text: it can carry the value that it rejected, and that is the prompt.
            raise InvalidRequest(
                f"vLLM refused the request's `{error.parameter or 'parameters'}`.",
                field="$",
                remedy="Shorten the prompt, or mend that parameter.",
            ) from None
        except EngineDeadError as error:
            raise EngineDead("The engine process died.", remedy="Restart HLO; vLLM's log says why it died.") from error
        except EngineGenerateError as error:
            raise EngineError("The engine failed on this request.", remedy="Ask again; see vLLM's log.") from error
        except Exception as error:
            if type(error).__name__ in ("QueueOverflowError", "MaxQueuedTokensError"):
                raise Overloaded("The engine's queue is full.", remedy="Ask again in a few seconds.") from error
            raise

    async def _read_ahead(self, request: Any) -> None:
        """Have the workers read an adapter beside their work: `add_lora` would hold up all that runs meanwhile."""
        if self._llm.vllm_config.parallel_config.worker_extension_cls != WORKER:  # the operator has one of their own
            return
        given = (request.lora_name, request.lora_int_id, request.lora_path, self._options.spare)
        if not all(await self._llm.collective_rpc("hlo_read_adapter", args=given)):
            return
        number = (request.lora_int_id,)
        while not all(await self._llm.collective_rpc("hlo_adapter_is_read", args=number)):  # noqa: ASYNC110
            await asyncio.sleep(_READING_S)

    def _lora(self, adapter: AdapterVersion | None) -> Any:
        wanted = adapter or self._options.null
        if wanted is None:
            return None
        request = self._loras.get(wanted.engine_name)
        if request is None:  # vLLM would load it now, and die of a bad one with all that is in flight
            raise AdapterError(f"The adapter `{wanted.engine_name}` is not loaded.", remedy="Load it before using it.")
        return request

    async def _forget(self, number: int) -> None:
        """Take an adapter out of the engine; a failed load can leave it half-loaded there."""
        if not self._llm.errored:
            await self._llm.remove_lora(number)


def _since_asked(metrics: Any, moment: str, held_s: float) -> float | None:
    """The time from the question to a moment that vLLM noted: as it was held here, and from vLLM's queue on.

    Of vLLM's times only those of its engine's clock are used: its others are of the wall clock, which can be set.
    """
    if metrics is None or not getattr(metrics, moment):
        return None
    return held_s + max(float(getattr(metrics, moment) - metrics.queued_ts), 0.0)


def _finish_reason(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    if reason == "error":
        raise EngineError("The engine failed on this request.", remedy="Ask again; see vLLM's log.")
    return cast("FinishReason", reason if reason in ("stop", "length") else "abort")
