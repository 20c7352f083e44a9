"""Knows why vLLM did not start.

vLLM's engine fails in a child process: it logs the cause there and dies, and the parent hears no more than that it
failed. So the children get a log handler of ours, which writes the cause to a file that the parent reads. Where the
cause is a want of memory, the traceback is kept from the terminal: the advice that HLO ends with says all of it.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hlo import logs
from hlo.contracts import EngineOptions
from hlo.errors import EngineError, HLOError, OutOfMemory
from hlo.generation import advice, base_model
from hlo.generation.advice import Card
from hlo.generation.memory import GIB, Demand, predict

_CAUSES = "causes.jsonl"
_CONFIG = "logging.json"

# What vLLM and torch say when memory is wanting, on GPU and CPU (vllm/v1/core/kv_cache_planning.py, v1/worker/utils.py,
# v1/worker/cpu_worker.py).
_WANT_OF_MEMORY = re.compile(
    r"out of memory"
    r"|OutOfMemoryError"
    r"|No available memory for the cache blocks"
    r"|larger than the available KV cache memory"
    r"|larger than the maximum number of tokens that can be stored in KV cache"
    r"|less than desired [CG]PU memory utilization"
    r"|less than requested memory for kv"
    r"|not enough memory",
    re.IGNORECASE,
)
# Where vLLM and torch begin to give advice of their own, or to tell of what is of no use here.
_THEIR_ADVICE = re.compile(
    r"\s*(Try (increasing|setting)|(Increase|Decrease|Reduce) |See https|If reserved|Please try|Of the allocated)"
)
_FREE = re.compile(r"Free memory on device .*?\(([\d.]+)/([\d.]+) GiB\)")


class Recorder(logging.Handler):
    """Writes exceptions that vLLM logs while it starts to a file in `folder`; once that has gone, it does nothing."""

    def __init__(self, folder: str) -> None:
        super().__init__(logging.ERROR)
        self._folder = Path(folder)

    def emit(self, record: logging.LogRecord) -> None:
        """Record the exception; take the traceback off what speaks of memory, before other handlers see it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not self._folder.is_dir():
            return
        text = f"{type(error).__name__}: {error}"
        with (self._folder / _CAUSES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(text) + "\n")
        if wants_memory(text):
            record.msg, record.args = f"{record.getMessage()} {_shortened(text)}", ()
            record.exc_info = record.exc_text = None
            if multiprocessing.parent_process() is not None:  # what this dying child still prints is that traceback
                sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives


def watch(folder: Path, arguments: Mapping[str, Any], kind: logs.Format) -> dict[str, Any]:
    """What to add to vLLM's arguments, so that causes are recorded in `folder`, and lines are of that kind.

    Nothing, if it logs as others say.
    """
    try:
        from vllm.config.logging import LoggingConfig
        from vllm.logger import DEFAULT_LOGGING_CONFIG
    except ImportError:  # another version: the cause stays in the log
        return {}
    usual = LoggingConfig()
    if arguments.get("logging_config") or usual.pylogging_config_file or not usual.configure_logging:
        return {}
    config: dict[str, Any] = json.loads(json.dumps(DEFAULT_LOGGING_CONFIG))
    config["handlers"]["vllm"]["level"] = config["loggers"]["vllm"]["level"] = usual.log_level
    for formatter in config["formatters"].values():
        formatter["log_level"] = usual.log_level
    if kind == "json":
        ours = {"()": f"{logs.JsonFormatter.__module__}.{logs.JsonFormatter.__qualname__}"}
        config["formatters"] = dict.fromkeys(config["formatters"], ours)
    config["handlers"]["hlo"] = {"()": f"{Recorder.__module__}.{Recorder.__qualname__}", "folder": str(folder)}
    config["loggers"]["vllm.v1"] = {"handlers": ["hlo"], "level": "NOTSET"}
    path = folder / _CONFIG
    path.write_text(json.dumps(config), encoding="utf-8")
    return {"logging_config": LoggingConfig(pylogging_config_file=str(path))}


def causes(folder: Path) -> tuple[str, ...]:
    """What was recorded in `folder`, the first cause first."""
    path = folder / _CAUSES
    if not path.is_file():
        return ()
    return tuple(str(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


def wants_memory(text: str) -> bool:
    """Whether an exception's text tells of a want of memory."""
    return _WANT_OF_MEMORY.search(text) is not None


def failure(error: Exception, recorded: tuple[str, ...], options: EngineOptions) -> HLOError:
    """What to tell of an engine that did not start."""
    texts = (*recorded, f"{type(error).__name__}: {error}")
    wanting = next((text for text in texts if wants_memory(text)), None)
    if wanting is not None:
        return OutOfMemory(f"vLLM lacks memory to start. {_shortened(wanting)}", remedy=_remedy(wanting, options))
    cause = f" {texts[0].splitlines()[0]}" if recorded else f" {error}"
    return EngineError(
        f"vLLM did not start.{cause}",
        remedy="Its own log above says more; `hlo doctor` tells what fits this machine.",
    )


def _shortened(text: str) -> str:
    """vLLM's own sentence, without the exception's name and the advice, which is about vLLM's arguments."""
    said = _THEIR_ADVICE.split(text.partition(": ")[2] or text, maxsplit=1)[0]
    return said.strip().rstrip(".") + "."


def _remedy(text: str, options: EngineOptions) -> str:
    try:
        model = base_model.find(str(options.model))
    except HLOError:
        return "`hlo doctor` tells what fits this machine."
    if options.device == "cpu":
        demand = Demand.of(options, model)
        size = predict(model, demand).per_token
        gib, longest = math.ceil(demand.max_model_len * size / GIB), options.cpu_kv_cache_gib * GIB // size
        if longest > demand.max_model_len:
            return f"Free memory, or set HLO_CPU_KV_CACHE_GIB={gib}, which holds a request of {demand.max_model_len}."
        return f"Set HLO_MAX_MODEL_LEN to at most {longest}, or HLO_CPU_KV_CACHE_GIB={gib}."
    card = _card(text, options)
    if card is None:
        return "`hlo doctor` tells what fits this machine."
    return advice.remedy(model, Demand.of(options, model, card.total), card, spare=options.spare, failed=True)


def _card(text: str, options: EngineOptions) -> Card | None:
    """The GPU, as vLLM's words tell of it or as it is."""
    told = _FREE.search(text)
    if told is not None:
        free, total = (int(float(number) * GIB) for number in told.groups())
        return Card(total, options.gpu_memory_utilization, max(0, total - free - advice.CONTEXT))
    import torch

    if not torch.cuda.is_available():
        return None
    return Card(torch.cuda.get_device_properties(0).total_memory, options.gpu_memory_utilization)
