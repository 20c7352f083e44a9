"""What can be told of the servers without an engine: for `hlo doctor`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hlo.contracts import EngineOptions
from hlo.generation.openai_engine.server import VllmServer
from hlo.generation.openai_engine.wire import ServerFailed
from hlo.records import AdapterVersion, Finding

_TOPIC = "servers"


async def look(options: EngineOptions, adapters: Sequence[AdapterVersion]) -> list[Finding]:
    """What each server is, and whether it will do with these adapters; none is loaded."""
    servers = options.servers
    if servers is None:
        return [Finding(_TOPIC, "trouble", "HLO_ENGINE_URLS names no server.", "Such as http://gpu-1:8000.")]
    made = [VllmServer(url, servers, options) for url in servers.urls]
    try:
        return list(await asyncio.gather(*(_look(server, adapters) for server in made)))
    finally:
        await asyncio.gather(*(server.close() for server in made))


async def _look(server: VllmServer, adapters: Sequence[AdapterVersion]) -> Finding:
    try:
        await server.connect()
        lets_load = await server.lets_load()
    except ServerFailed as error:
        remedy = "Start `vllm serve` there with the same model and --enable-lora."
        return Finding(_TOPIC, "trouble", f"{server.url} can not be used: {error.reason}.", remedy)
    missing = [one for one in adapters if one.engine_name not in server.listed]
    told = f"{server.url}: vLLM {server.version}, {server.max_model_len:,} tokens of context"
    told += f", places for {server.slots} adapters" if server.slots else ""
    if missing and not lets_load:
        modules = " ".join(f"{one.engine_name}={one.path.resolve()}" for one in missing)
        return Finding(
            _TOPIC,
            "trouble",
            f"{told}; it lacks {len(missing)} adapters and lets none be loaded.",
            f"Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or with `--lora-modules {modules}`.",
        )
    if server.slots is not None and server.slots < len(adapters):
        return Finding(
            _TOPIC,
            "warning",
            f"{told}, fewer than the {len(adapters)} that there are: they take turns.",
            "A larger --max-loras lets all answer at once, where memory allows.",
        )
    return Finding(_TOPIC, "ok", told)
