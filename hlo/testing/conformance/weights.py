"""The adapter's weights: whether they fit the base model, and whether they change what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hlo import assemble, engines
from hlo.catalog import Catalog, Entry
from hlo.errors import HLOError, SettingsError
from hlo.generation import adapters, prompting
from hlo.testing.conformance.bench import Bench, Told, ok, problem, trouble, warning

T = TypeVar("T")


def adapter(bench: Bench) -> Iterator[Told]:
    """Every tensor of each adapter, against the base model."""
    for name, found in bench.versions.items():
        if isinstance(found, HLOError):
            yield trouble(f"`{name}`: {found.message}", found.remedy)
            continue
        located, version = found
        yield ok(
            f"`{name}`: rank {version.rank} on {', '.join(version.modules)} of {bench.model.name}, "
            f"sha256 {version.sha256[:12]}, from {version.source}",
        )
        pickles = sorted(file.name for file in located.folder.rglob("*") if file.suffix in adapters.PICKLES)
        if pickles:
            more = f", and {len(pickles) - 1} more" if len(pickles) > 1 else ""
            yield warning(
                f"`{name}`: the pickle `{pickles[0]}` lies beside the weights{more}.",
                "Leave it out: HLO never opens it, and who does runs what is in it.",
            )
        config = json.loads((version.path / adapters.CONFIG).read_text(encoding="utf-8"))
        if not config.get("base_model_name_or_path"):
            yield warning(
                f"`{name}`: {adapters.CONFIG} does not say which base model it was trained for.",
                "Write `base_model_name_or_path`, so that HLO can refuse it on another.",
            )


def effect(bench: Bench) -> Iterator[Told]:
    """Whether each adapter changes what the model says, in the engine that the settings ask for."""
    subject = bench.subject
    entries = {
        specialty.name: Entry(specialty, version, "", subject.name, subject.version)
        for specialty, _, version in bench.sound()
        if not problem(prompting.check_template, specialty.template)
    }
    if not entries:
        return
    if not bench.engine:
        yield warning("Not examined: no engine was to be started.", "Leave out `--no-engine`.")
        return
    try:
        engines.find(bench.settings, bench.discovery.hooks)
    except SettingsError as error:
        yield warning(f"Not examined, for want of an engine: {error.message}", error.remedy)
        return
    yield from _run(_effects(bench, Catalog(entries, ())))


async def _effects(bench: Bench, found: Catalog) -> list[Told]:
    engine = await engines.start(bench.settings, bench.model, found, bench.discovery.hooks)
    told = []
    try:
        by = f"{engine.info.engine} {engine.info.version}"
        for name, entry in found.entries.items():
            try:
                most = await assemble.show_effect(entry, engine, bench.tokenizer)
            except HLOError as error:
                told.append(trouble(f"`{name}`: {error.message}", error.remedy))
            else:
                change = f"on a question of its own, a token's log-probability changes by up to {most:.2f} ({by})"
                told.append(ok(f"`{name}`: {change}"))
    finally:
        await engine.close()
    return told


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, whether or not this thread runs an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
