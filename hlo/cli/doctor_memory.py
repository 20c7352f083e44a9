"""What `hlo doctor` says about memory: what vLLM will report, part by part, and what to change if that does not fit."""

from __future__ import annotations

import os

from msgspec import Struct
from rich.table import Table

from hlo.contracts import EngineOptions
from hlo.generation.advice import CONTEXT, Card, fits, propose, remedy
from hlo.generation.base_model import BaseModel
from hlo.generation.memory import GIB, Demand, Prediction, predict
from hlo.records import Finding
from hlo.settings import Settings


class Memory(Struct, frozen=True):
    """A prediction for a device: where, how much of it vLLM may take, and how many tokens its KV cache will hold."""

    where: str
    share: int
    demand: Demand
    prediction: Prediction
    tokens: int
    card: Card | None = None

    @property
    def fits(self) -> bool:
        """Whether vLLM starts and has a useful KV cache."""
        return not self.taken and fits(self.demand, self.tokens)

    @property
    def taken(self) -> bool:
        """Whether the CUDA context or other processes hold some of what vLLM asks for, so that it refuses to start."""
        return self.card is not None and self.card.share > self.card.total - self.card.others - CONTEXT


def examine(model: BaseModel, options: EngineOptions, settings: Settings, gpu_gib: float | None) -> Memory | None:
    """The prediction for that GPU, this GPU, or this machine without one (and no card then); None: nothing is known."""
    if options.device == "cuda":
        card, where = _card(settings, gpu_gib)
        demand = Demand.of(options, model, card.total)
        prediction = predict(model, demand)
        return Memory(where, card.share, demand, prediction, prediction.tokens(card.share), card)
    available = _machine()
    if available is None:
        return None
    free, where = available
    demand = Demand.of(options, model)
    prediction = predict(model, demand)
    share = min(free, prediction.fixed + settings.cpu_kv_cache_gib * GIB)
    return Memory(where, share, demand, prediction, prediction.tokens(share))


def finding(found: Memory | None, model: BaseModel, options: EngineOptions, settings: Settings) -> Finding:
    """What is predicted, whether that fits, and what to change if not."""
    if found is None:
        return Finding("memory", "warning", "This system does not tell how much memory it has.")
    length = found.demand.max_model_len
    text = (
        f"{found.where}: {_told(found.prediction)}, leaving room for {max(found.tokens, 0):,} tokens of context; "
        f"one request may have {length:,}"
    )
    if found.card is not None and found.taken:
        free = (found.card.total - found.card.others - CONTEXT) / GIB
        text += f"; vLLM asks for {found.card.share / GIB:.1f} GiB, and {free:.1f} are free beside a CUDA context"
    if found.fits and found.tokens >= 4 * length:
        return Finding("memory", "ok", text)
    if found.fits:
        advised = f"For more requests at once, set HLO_MAX_MODEL_LEN below {length}, or HLO_KV_CACHE_DTYPE=fp8."
        return Finding("memory", "warning", text, advised)
    if found.card is None:
        longest = settings.cpu_kv_cache_gib * GIB // found.prediction.per_token
        advised = f"Free memory, set HLO_MAX_MODEL_LEN to at most {longest}, or change HLO_CPU_KV_CACHE_GIB."
    else:
        advised = remedy(model, found.demand, found.card, spare=options.spare)
    return Finding("memory", "trouble", text, advised)


def tables(found: Memory, model: BaseModel, options: EngineOptions) -> tuple[Table, ...]:
    """The prediction part by part; where it does not fit a GPU, a table of what would beside it."""
    prediction, demand = found.prediction, found.demand
    parts = Table(title=f"Memory that vLLM will report, of {found.share / GIB:.2f} GiB", box=None, padding=(0, 2))
    parts.add_column("part")
    parts.add_column("GiB", justify="right")
    for part, size in (
        ("weights", prediction.weights),
        (f"adapters: {demand.slots} slots of rank {demand.rank}", prediction.adapters),
        (f"activation: {demand.max_num_batched_tokens:,} tokens a step", prediction.activation),
        ("CUDA graphs", prediction.graphs),
        (f"libraries, and sampling for {demand.max_num_seqs} requests", prediction.other),
        (
            f"KV cache: {max(found.tokens, 0):,} tokens of {prediction.per_token / 1024:g} KiB",
            max(found.tokens, 0) * prediction.per_token,
        ),
    ):
        parts.add_row(part, f"{size / GIB:.2f}")
    if found.card is None or found.fits:
        return (parts,)
    ways = Table(title="What fits, the least change first", box=None, padding=(0, 2))
    for column in ("settings", "context", "KV cache, tokens"):
        ways.add_column(column, justify="left" if column == "settings" else "right")
    for way in propose(model, demand, found.card, spare=options.spare):
        ways.add_row("\n".join(map(str, way.changes)), f"{way.demand.max_model_len:,}", f"{way.tokens:,}")
        ways.add_section()
    return (parts, ways) if ways.rows else (parts,)


def _told(prediction: Prediction) -> str:
    parts = ("weights", "adapters", "activation", "graphs", "other")
    return ", ".join(f"{part} {getattr(prediction, part) / GIB:.2f} GiB" for part in parts)


def _card(settings: Settings, gpu_gib: float | None) -> tuple[Card, str]:
    share = settings.gpu_memory_utilization
    if gpu_gib is not None:
        return Card(int(gpu_gib * GIB), share), f"A GPU of {gpu_gib:g} GiB"
    import torch

    free, total = torch.cuda.mem_get_info()  # asking takes a CUDA context, which vLLM's own process will have too
    name = f"{torch.cuda.get_device_name()} ({free / GIB:.1f} of {total / GIB:.1f} GiB free)"
    return Card(total, share, max(0, total - free - CONTEXT)), name


def _machine() -> tuple[int, str] | None:
    """Bytes that the model, its adapters and the cache may take on this machine; None: unknown."""
    known = getattr(os, "sysconf_names", {})  # empty on Windows; macOS tells all memory, and not what of it is free
    pages, word = ("SC_AVPHYS_PAGES", "free") if "SC_AVPHYS_PAGES" in known else ("SC_PHYS_PAGES", "in all")
    if pages not in known:
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
    return total, f"This machine's memory ({total / GIB:.1f} GiB {word})"
