"""Exchanges the specialties of a running HLO for those that are installed now, while questions are being answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct

from hlo import assemble, catalog, plugins
from hlo.assemble import Runtime
from hlo.catalog import Catalog, Entry
from hlo.edition import Edition
from hlo.errors import AdapterError, HLOError
from hlo.plugins.calls import HookCalls
from hlo.records import AdapterVersion, Refusal
from hlo.routing import bank
from hlo.routing.bank import Group
from hlo.telemetry.tracing import NOBODY, Span, Spans

logger = logging.getLogger("hlo")


class Reloaded(Struct, frozen=True):
    """What a reload did, by the names of specialties; `changed` ones have another adapter.

    `kept` are those whose new version was refused, and which are served as they were before.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[Refusal, ...]


class Reloader:
    """Reloads one runtime, one reload at a time.

    A request keeps the edition that it began with, and an adapter leaves the engine once no request uses an edition
    that has it. A changed adapter has another content hash, and so another name in the engine: nothing that is cached
    for the old one can be taken for the new.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None

    async def reload(self, caller: Span = NOBODY) -> Reloaded:
        """Find, check and load what is installed now, and exchange it for what was served. Raises `HLOError`.

        `caller` is the span of who asked for it.
        """
        metrics = self._runtime.metrics
        async with self._lock:
            try:
                if self._leaving is not None:  # what left with the last reload must be out of the engine
                    await self._leaving
                with self._runtime.tracing.span("reload", caller) as span:
                    done = await self._exchange(self._runtime.tracing.under(span))
                    for what in ("added", "changed", "removed", "kept"):
                        span.set_attribute(f"hlo.reload.{what}", getattr(done, what))
                    span.set_attribute("hlo.reload.refused", len(done.refused))
            except BaseException:
                metrics.reloaded("failed")
                raise
            metrics.reloaded("done")
            logger.info(
                "reloaded: added %s; changed %s; removed %s; kept as they were %s",
                *(", ".join(names) or "none" for names in (done.added, done.changed, done.removed, done.kept)),
            )
            return done

    async def close(self) -> None:
        """Stop waiting for what is leaving."""
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)

    async def _exchange(self, spans: Spans) -> Reloaded:
        runtime, settings = self._runtime, self._runtime.settings
        old = runtime.pipeline.edition
        found, hooks = await asyncio.to_thread(assemble.collect, settings, runtime.model, fresh=True, spans=spans)
        with spans("embed examples"):
            groups, unroutable = await self._embed(found, old)
        found = catalog.keep(found, unroutable)
        calls = HookCalls(hooks, settings.question_timeout_s, runtime.metrics.hook_failed)
        # Reads the metadata of all packages: not on the event loop, where answers wait, and not for each specialty.
        here = {point.name for point in await asyncio.to_thread(plugins.installed)} - set(found.off)
        served = {name: entry for name, entry in old.catalog.entries.items() if _stays(entry, found, here)}
        served |= {name: entry for name, entry in found.entries.items() if not self._is_new(entry)}
        refusals = list(found.refusals)
        for entry in served.values():  # those that an engine lost when it died and was started again
            try:
                await runtime.pipeline.engine.load(entry.adapter)
            except AdapterError as lost:
                refusals.append(catalog.refusal(entry.plugin, entry.specialty.name, lost))
        pending = [name for name, entry in found.entries.items() if self._is_new(entry)]
        try:
            while True:
                room = max(runtime.pipeline.engine.info.max_adapters - len(_versions(runtime.pipeline.catalog)), 0)
                for name in pending[:room]:
                    entry = found.entries[name]
                    error = await assemble.load(
                        entry, runtime.pipeline.engine, runtime.tokenizer, runtime.metrics, spans
                    )
                    if error is None:
                        served[name] = entry
                    else:
                        refusals.append(catalog.refusal(entry.plugin, name, error))
                pending = pending[room:]
                before = runtime.pipeline.edition
                now = Catalog(dict(sorted(served.items())), tuple(refusals), found.off)
                own = _groups(now, found, groups, old)
                # Compares the whole background with the specialties: not on the event loop either.
                runtime.pipeline.edition = await asyncio.to_thread(
                    assemble.make_edition, settings, now, runtime.encoder, own, runtime.background, calls
                )
                if not pending:
                    break
                await self._leave(before)
                if len(_versions(now)) >= runtime.pipeline.engine.info.max_adapters:
                    refusals += [_no_room(found.entries[name]) for name in pending]
                    pending = []
        except BaseException:  # all is served as before, so what was loaded for nothing leaves again
            await self._retire(Catalog(served, ()), calls)
            raise
        self._leaving = asyncio.create_task(self._leave(before))
        runtime.pipeline.edition.announce(runtime.metrics)
        return _difference(old.catalog, runtime.pipeline.catalog, refusals)

    def _is_new(self, entry: Entry) -> bool:
        """Whether the engine has yet to load an entry's adapter."""
        return entry.adapter.engine_name not in _versions(self._runtime.pipeline.catalog)

    async def _embed(self, found: Catalog, old: Edition) -> tuple[tuple[Group, ...], dict[str, HLOError]]:
        """The examples of what was found, embedded; those that have not changed are known."""
        same = {name for name, entry in found.entries.items() if _same_examples(entry, old.catalog.entries.get(name))}
        others = [entry.specialty for name, entry in found.entries.items() if name not in same]
        known = bank.only(old.router.bank.specialties, same)
        fresh, errors = await assemble.embed(self._runtime.settings, others, self._runtime.encoder)
        return known + fresh, dict(errors)

    async def _leave(self, old: Edition) -> None:
        """Wait until nobody uses `old`; take out of the engine what only it had, and stop its hooks."""
        await old.drained()
        await self._retire(old.catalog, old.hooks)

    async def _retire(self, found: Catalog, hooks: HookCalls) -> None:
        """Take out of the engine what is not served, and stop the hooks unless they are in use."""
        now = self._runtime.pipeline.edition
        present = _versions(now.catalog)
        for name, version in _versions(found).items():
            if name not in present:
                await self._runtime.pipeline.engine.unload(version)
        if hooks is not now.hooks:
            await asyncio.to_thread(hooks.close, self._runtime.settings.shutdown_grace_s)


def _versions(found: Catalog) -> dict[str, AdapterVersion]:
    """The adapters of a catalog, by their names in the engine."""
    return {entry.adapter.engine_name: entry.adapter for entry in found.entries.values()}


def _stays(entry: Entry, found: Catalog, here: Collection[str]) -> bool:
    """Whether a specialty that is served is there still, be it in a version that can not be; `here` are all plugins."""
    name = entry.specialty.name
    refused = any(refusal.plugin == entry.plugin and refusal.specialty in (None, name) for refusal in found.refusals)
    return name in found.entries or (refused and entry.plugin in here)


def _same_examples(entry: Entry, before: Entry | None) -> bool:
    if before is None or entry.specialty.embeddings is not None or before.specialty.embeddings is not None:
        return False
    return entry.specialty.examples == before.specialty.examples


def _groups(now: Catalog, found: Catalog, groups: Sequence[Group], old: Edition) -> tuple[Group, ...]:
    """The group of each entry that is served: from its own examples, be they new or old."""
    new = {name for name, entry in now.entries.items() if entry is found.entries.get(name)}
    return bank.only(groups, new) + bank.only(old.router.bank.specialties, now.entries.keys() - new)


def _no_room(entry: Entry) -> Refusal:
    error = AdapterError(
        f"The engine has no room left for the adapter of `{entry.specialty.name}`.",
        remedy="Restart HLO, with a larger HLO_SPARE_ADAPTERS for the next time.",
    )
    return catalog.refusal(entry.plugin, entry.specialty.name, error)


def _difference(old: Catalog, now: Catalog, refusals: Iterable[Refusal]) -> Reloaded:
    refused = tuple(refusals)
    culprits = {(refusal.plugin, refusal.specialty) for refusal in refused}
    return Reloaded(
        added=tuple(name for name in now.entries if name not in old.entries),
        changed=tuple(
            name
            for name, entry in now.entries.items()
            if name in old.entries and entry.adapter.sha256 != old.entries[name].adapter.sha256
        ),
        removed=tuple(name for name in old.entries if name not in now.entries),
        kept=tuple(
            name for name, entry in now.entries.items() if culprits & {(entry.plugin, name), (entry.plugin, None)}
        ),
        refused=refused,
    )
