"""`hlo doctor`: looks at this machine and these settings, and helps with the three troubles."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from hlo.catalog import Catalog
from hlo.cli.findings import draw
from hlo.cli.options import read, settings_options
from hlo.contracts import EngineOptions
from hlo.errors import HLOError
from hlo.plugins import Hooks
from hlo.records import Finding
from hlo.settings import Settings


@click.command("doctor")
@click.option("--gpu-gib", type=float, help="Advise for a GPU of this many GiB instead of the one in this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options()
def command(gpu_gib: float | None, as_json: bool, **options: Any) -> None:
    """Examine this machine and these settings, without starting the engine.

    Answers the three troubles: CUDA out of memory (what fits, and what to lower), adapter not found (where it was
    looked for), slow answers (what slows them). Exits 1 when something will not work.
    """
    options["log_level"] = options["log_level"] or "error"
    settings = read(options)
    from hlo.assemble import discover

    with Console(stderr=True).status("examining"):
        hooks = discover(settings).hooks
        about_model, tables = _model(settings, gpu_gib)
        findings = [
            *_software(settings, hooks),
            *about_model,
            *_encoder(settings, hooks),
            *_speed(settings),
            _keys(settings),
        ]
    if as_json:
        click.echo(msgspec.json.encode(findings).decode())
    else:
        draw(findings)
        for table in tables:
            Console().print()
            Console().print(table)
    if any(one.state == "trouble" for one in findings):
        raise SystemExit(1)


def _software(settings: Settings, hooks: Hooks) -> Iterator[Finding]:
    from hlo import engines
    from hlo.generation import transformers_engine, vllm_engine

    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    try:
        start = engines.find(settings, hooks)
    except HLOError as error:
        yield Finding("engine", "trouble", error.message, error.remedy)
    else:
        if start == vllm_engine.VllmEngine.start:
            yield Finding("engine", "ok", f"vllm {vllm_engine.version()}")
        elif start == transformers_engine.TransformersEngine.start:
            yield Finding(
                "engine",
                "warning",
                f"transformers {transformers_engine.version()}: good for trying out, slow for many users",
                "`pip install 'hlo[gpu]'` or `'hlo[cpu]'` brings vLLM.",
            )
        elif settings.generates_elsewhere:
            yield Finding("engine", "ok", f"openai, in front of {len(settings.servers)} servers")
        else:
            yield Finding("engine", "ok", f"{settings.engine}, from a plugin")
    torch = _version("torch")
    for name in ("torchvision", "torchaudio", "torchcodec"):
        other = _version(name)
        if torch and other and "+cpu" in torch and "+cpu" not in other:
            yield Finding(
                "engine",
                "trouble",
                f"{name} {other} does not fit torch {torch}: importing transformers will fail.",
                f"`pip uninstall {name}`; HLO does not need it.",
            )
    if _needs_bitsandbytes(settings) and not (_version("vllm-bnb-plugin") and _version("bitsandbytes")):
        yield Finding(
            "engine",
            "trouble",
            f"{settings.effective_quantization} needs the packages vllm-bnb-plugin and bitsandbytes here.",
            "`pip install --no-deps vllm-bnb-plugin bitsandbytes`, or HLO_QUANTIZATION=fp8_per_channel.",
        )


def _needs_bitsandbytes(settings: Settings) -> bool:
    """Whether bitsandbytes computes: where it was asked for, and with int8 weights on a CPU."""
    from hlo.engines import device

    asked = settings.effective_quantization
    try:
        return asked == "bitsandbytes" or (asked == "int8" and device(settings) == "cpu")
    except HLOError:
        return False  # told with the model


def _model(settings: Settings, gpu_gib: float | None) -> tuple[list[Finding], tuple[Table, ...]]:
    """The base model, its adapters, and the memory that both need."""
    from hlo import engines
    from hlo.assemble import collect, find_model, search_path
    from hlo.cli import doctor_memory
    from hlo.engines import device

    try:
        chosen = device(settings) if gpu_gib is None else "cuda"
        model = find_model(settings)
    except HLOError as error:
        return [Finding("model", "trouble", error.message, error.remedy)], ()
    note = " (embedded demonstration; set HLO_MODEL)" if model.embedded else ""
    size = f"{model.parameters / 1e6:,.0f}M parameters"
    catalog, _ = collect(settings, model)
    looked = ", ".join(str(folder) for folder in search_path(settings, model))
    findings = [
        Finding("model", "ok", f"{model.name}, {size}, in {model.folder}{note}"),
        Finding("adapters", "ok", f"{len(catalog.entries)} can be served; names are looked up in {looked}"),
        *(
            Finding("adapters", "trouble", f"{refusal.specialty or refusal.plugin}: {refusal.reason}", refusal.remedy)
            for refusal in catalog.refusals
        ),
    ]
    if not catalog.entries and not catalog.refusals:
        remedy = "`pip install hlo-cardiology`, or write one."
        findings.append(Finding("adapters", "warning", "No specialty is installed.", remedy))
    options = engines.options(settings, model, catalog, chosen)
    findings.append(Finding("adapters", "ok", f"The engine is started with {options.reason}."))
    if settings.generates_elsewhere:
        return findings + _servers(options, catalog), ()
    memory = doctor_memory.examine(model, options, settings, gpu_gib)
    findings.append(doctor_memory.finding(memory, model, options, settings))
    return findings, () if memory is None else doctor_memory.tables(memory, model, options)


def _servers(options: EngineOptions, catalog: Catalog) -> list[Finding]:
    """The servers that generate, each as it answers now."""
    from hlo.generation import openai_engine

    adapters = [entry.adapter for entry in catalog.entries.values()]
    return asyncio.run(openai_engine.look(options, adapters))


def _encoder(settings: Settings, hooks: Hooks) -> Iterator[Finding]:
    from hlo.assemble import load_encoder

    try:
        encoder = load_encoder(settings, hooks)
    except HLOError as error:
        yield Finding("encoder", "trouble", error.message, error.remedy)
    else:
        yield Finding("encoder", "ok", f"{encoder.name}, fingerprint {encoder.fingerprint}")


def _speed(settings: Settings) -> Iterator[Finding]:
    """What makes answers slow."""
    from hlo.engines import device

    try:
        chosen = device(settings)
    except HLOError:
        return  # told with the model
    if chosen == "cpu" and not settings.generates_elsewhere:
        yield Finding(
            "speed",
            "warning",
            f"The model runs on {os.cpu_count()} CPU cores; 7 billion parameters give about a token a second there.",
            "Use a GPU for anything but the demonstration model.",
        )
        if "tcmalloc" not in os.environ.get("LD_PRELOAD", "") and sys.platform == "linux":
            yield Finding(
                "speed",
                "warning",
                "tcmalloc is not preloaded; vLLM allocates faster with it.",
                "`apt install libtcmalloc-minimal4` and set LD_PRELOAD to its .so file.",
            )
    if chosen == "cuda" and settings.enforce_eager:
        yield Finding(
            "speed", "warning", "HLO_ENFORCE_EAGER=true turns CUDA graphs off.", "Unset it, unless you are debugging."
        )
    if chosen == "cuda" and settings.effective_quantization == "bitsandbytes":
        yield Finding(
            "speed",
            "warning",
            "bitsandbytes saves memory but runs eagerly: it keeps a seventh of bf16's throughput.",
            "QUANTIZE=true alone serves the same weights through vLLM's int8 kernels, faster than bf16.",
        )
    if settings.log_level == "debug":
        yield Finding("speed", "warning", "HLO_LOG_LEVEL=debug writes much.", "Set it to info.")


def _keys(settings: Settings) -> Finding:
    """Who may ask."""
    from hlo import keys
    from hlo.service.access import is_loopback

    try:
        found = [one for one in keys.read(settings.keys_file.expanduser()) if one.live]
    except HLOError as error:
        return Finding("keys", "trouble", error.message, error.remedy)
    if found:
        admins = sum(one.role == "admin" for one in found)
        return Finding("keys", "ok", f"{len(found)} in force, {admins} of them with the role admin")
    if is_loopback(settings.host):
        return Finding("keys", "ok", "none: whoever is on this machine may ask, and nobody else")
    return Finding(
        "keys",
        "warning",
        f"none in {settings.keys_file}: the server will listen on loopback alone, not on {settings.host}.",
        "Make one with `hlo keys new NAME`.",
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
