"""The two protocols that other parts can be swapped behind: `Encoder` and `Engine`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct
from pydantic import SecretStr

from hlo.records import AdapterVersion, Delta, Prompt, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Encoder(Protocol):
    """Turns questions into unit vectors."""

    @property
    def name(self) -> str:
        """What the operator calls it."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides its vectors. Embeddings made under another fingerprint are not comparable."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, shape (questions, dimension). Blocks; called from one worker thread at a time.

        An encoder that more may call at once says how many in an attribute `threads`. Raises `EncoderError`.
        """


class Servers(Struct, frozen=True):
    """Servers that generate, for an engine that stands in front of some: their addresses, and the key they ask for.

    One that sends nothing for `timeout_s` has failed. At start the first of them may take `wait_s` to answer.
    """

    urls: tuple[str, ...]
    key: SecretStr | None = None
    timeout_s: float = 120.0
    wait_s: float = 600.0


class EngineOptions(Struct, frozen=True):
    """How an engine is to run. Lengths are in tokens; `slots` counts adapters that it keeps, `rank` is the highest.

    Each layer is divided among `tensor_parallel_size` devices, and the model runs `data_parallel_size` times; both are
    as the operator's own arguments have them, where these do.

    `resident` of them stand on the device at once (None: all), and take turns of `turn_s` seconds at least.
    `kinds` are the kinds of linear layer that adapters may touch: an engine may leave all others alone. `null` is an
    adapter that changes nothing, for an engine that can not compute a request without one right beside others. Of the
    slots, `spare` are for adapters to come. `lora_kernels` says whose kernels add LoRA on a GPU, and `lora_configs` are
    the folders in which HLO's find what was tuned, in order. `arguments` are the operator's own, in the engine's words,
    and come before all else. `reason` says why there are so many slots, of that rank and those kinds. An engine that
    makes spans of its own finds in `trace_environment`, under OpenTelemetry's names, where they go, and in TRACEPARENT
    the span that its start belongs to; empty: nobody wants them. One whose loop does not move for `stall_s` seconds is
    taken for dead. `servers` are for an engine that runs elsewhere.
    """

    model: Path
    name: str
    device: Literal["cpu", "cuda"]
    dtype: str
    quantization: str
    slots: int
    rank: int
    kinds: tuple[str, ...]
    resident: int | None = None
    turn_s: float = 0.5
    null: AdapterVersion | None = None
    spare: int = 0
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    cpu_kv_cache_gib: int = 1
    enforce_eager: bool = False
    shutdown_grace_s: int = 20
    stall_s: float = 120.0
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    log_level: str = "warning"
    log_format: Literal["console", "json"] = "console"
    lora_kernels: Literal["hlo", "engine"] = "engine"
    lora_configs: tuple[Path, ...] = ()
    arguments: Mapping[str, Any] = {}
    reason: str = ""
    trace_environment: Mapping[str, str] = {}
    servers: Servers | None = None


class EngineInfo(Struct, frozen=True):
    """What is running, as the engine reports it. Lengths are in tokens; `kinds` and `reason`: see `EngineOptions`.

    `weight_bytes` is what the model's weights take on all devices together, `linear_dtype` how the linear layers' are
    kept, and `linear_bits` what each of these takes, its share of the scales included. `max_num_seqs` is how many
    requests it computes at once. None: the engine does not tell.
    """

    engine: str
    version: str
    model: str
    device: str
    dtype: str
    quantization: str
    eager: bool
    max_model_len: int
    max_adapters: int
    max_lora_rank: int
    kinds: tuple[str, ...] = ()
    weight_bytes: int | None = None
    linear_dtype: str | None = None
    linear_bits: float | None = None
    reason: str = ""
    max_num_seqs: int | None = None


class ServerActivity(Struct, frozen=True):
    """One server behind an engine: whether it is used now, the requests on it, and how those that ended did.

    `requests` counts by outcome: `done`; `moved` to another server, since this one failed before it had begun;
    `failed`; `refused`, as the request broke a rule; or `aborted` by whoever asked. `loads` counts the adapters that it
    was given.
    """

    server: str
    up: bool
    running: int = 0
    requests: Mapping[str, int] = {}
    loads: int = 0


class EngineActivity(Struct, frozen=True):
    """What an engine tells of how its adapters share it: `held` requests wait for their adapter's turn.

    `turns` and `evictions` count, by the adapters' names in the engine, how often one was given a place and gave it up
    to another. `servers` are those that the engine stands in front of.
    """

    held: int = 0
    turns: Mapping[str, int] = {}
    evictions: Mapping[str, int] = {}
    servers: tuple[ServerActivity, ...] = ()


class Engine(Protocol):
    """Generates text from prompts, with any of the loaded adapters, for many requests at once.

    One that counts what it does may have a property `activity` besides, an `EngineActivity`, for metrics.
    """

    @property
    def info(self) -> EngineInfo:
        """What is running."""

    async def load(self, adapter: AdapterVersion) -> None:
        """Make `adapter` ready for use. Raises `AdapterError`, after which the engine holds nothing of it."""

    async def unload(self, adapter: AdapterVersion) -> None:
        """Forget `adapter`; no request may be using it."""

    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Yield text as it is generated; the last delta has a `finish_reason`. Closing the iterator aborts the request.

        A prompt that is wanted `whole` may have its text in one delta, which says when the first token was there.
        Raises `PromptTooLong`, `Overloaded`, `EngineDead` or another `EngineError`.
        """

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Return the natural-log probability of each of the prompt's tokens after the first, given those before it."""

    async def check_health(self) -> None:
        """Raise `EngineDead` if nothing can be generated any more: the engine is then closed, and another started.

        Asked before each question, and twice a second: it answers from what is known.
        """

    async def close(self) -> None:
        """Stop, leaving no process behind. Safe to call twice."""


StartEngine = Callable[[EngineOptions], Awaitable[Engine]]
"""Starts an engine; may take minutes. Raises `SettingsError`, `ModelError` or `EngineError`."""
