"""Puts the parts together: settings in, a running pipeline out. The only place where parts meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import msgspec
from msgspec import Struct
from threadpoolctl import threadpool_limits

import hlo
from hlo import catalog, engines, plugins
from hlo.catalog import Catalog, Entry
from hlo.contracts import Encoder, Engine, StartEngine
from hlo.edition import Edition
from hlo.errors import CalibrationError, HLOError, PluginError
from hlo.generation import adapters, base_model, prompting, uses
from hlo.generation.adapters import Located
from hlo.generation.alongside import both
from hlo.generation.base_model import BaseModel
from hlo.generation.effect import check_effect
from hlo.generation.line import Line
from hlo.generation.prompting import Tokenizer
from hlo.hub import Hub
from hlo.pipeline import Pipeline, Policy
from hlo.plugins import Discovery, Hooks
from hlo.plugins.calls import HookCalls
from hlo.records import AdapterVersion, Specialty
from hlo.routing import background, bank, calibration, encoders
from hlo.routing.background import Background
from hlo.routing.bank import Bank, Group
from hlo.routing.batching import BatchingEncoder
from hlo.routing.cache import CachedEncoder
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.router import Basis, Router
from hlo.settings import Settings
from hlo.telemetry import tracing as traces
from hlo.telemetry.audit import Audit
from hlo.telemetry.metrics import Metrics
from hlo.telemetry.spans import of_adapter
from hlo.telemetry.tracing import NOBODY, UNTRACED, Span, Spans, Tracing

logger = logging.getLogger("hlo")

Report = Callable[[str], None]


class Runtime(Struct, frozen=True):
    """A running HLO. Close it when done. `failed`, where there is one, comes to hold what it can not recover from."""

    settings: Settings
    model: BaseModel
    encoder: BatchingEncoder
    background: Background
    tokenizer: Tokenizer
    pipeline: Pipeline
    metrics: Metrics
    tracing: Tracing
    audit: Audit | None = None
    failed: asyncio.Future[HLOError] | None = None

    async def close(self) -> None:
        """Stop the engine, the encoder and the hooks' threads; nothing is left behind."""
        self.encoder.close()
        await self.pipeline.engine.close()
        await asyncio.to_thread(uses.remember, self.pipeline.uses, self.settings.cache_dir.expanduser())
        await asyncio.to_thread(self.pipeline.edition.hooks.close, self.settings.shutdown_grace_s)
        await asyncio.to_thread(self.tracing.close)
        if self.audit is not None:
            self.audit.close()


async def assemble(settings: Settings, metrics: Metrics, report: Report, begin: StartEngine | None = None) -> Runtime:
    """Start everything; takes tens of seconds. `report` hears what is being done. Raises `HLOError`.

    `begin` starts another engine than the one that the settings name.
    """
    key, audit = settings.audit_key, None
    if settings.audit_log is not None and key is not None:
        audit = await asyncio.to_thread(
            Audit.open, settings.audit_log, key.get_secret_value(), settings.audit_max_mb << 20
        )
    try:
        return await _assemble(settings, metrics, report, audit, begin)
    except BaseException:
        if audit is not None:
            audit.close()
        raise


async def _assemble(
    settings: Settings, metrics: Metrics, report: Report, audit: Audit | None, begin: StartEngine | None
) -> Runtime:
    tracing = Tracing.from_environment(hlo.__version__)
    with tracing.span("start", attributes={"hlo.version": hlo.__version__}) as start:
        spans = tracing.under(start)
        report("looking for the base model")
        with spans("find model"):
            model = await asyncio.to_thread(find_model, settings)
        report("checking plugins and adapters")
        with spans("plugins") as span:
            found, hooks = await asyncio.to_thread(collect, settings, model, spans=tracing.under(span))
        report("loading the encoder")
        with spans("load encoder", {"hlo.encoder": settings.encoder}):
            loaded = await asyncio.to_thread(load_encoder, settings, hooks)
            encoder = BatchingEncoder(loaded, settings.encoder_batch, settings.encoder_timeout_s)
        report(f"starting the engine with {len(found.entries)} adapters, and embedding the routing examples")
        tokenizer = await asyncio.to_thread(load_tokenizer, model)
        specialties = [entry.specialty for entry in found.entries.values()]
        engine, (groups, unroutable, others) = await both(
            engines.start(settings, model, found, hooks, tracing, start, begin, metrics.restarted),
            _embed_all(settings, specialties, encoder, spans),
        )
        try:
            found = catalog.keep(found, unroutable)
            report("loading the adapters and checking that each changes the output")
            order = await asyncio.to_thread(uses.rarest_first, found.entries, settings.cache_dir.expanduser())
            errors = {name: await load(found.entries[name], engine, tokenizer, metrics, spans) for name in order}
            found = catalog.keep(found, {name: error for name in found.entries if (error := errors[name])})
        except BaseException:
            await engine.close()
            raise
    calls = HookCalls(hooks, settings.question_timeout_s, metrics.hook_failed)
    edition = await asyncio.to_thread(make_edition, settings, found, encoder, groups, others, calls)
    edition.announce(metrics)
    line = Line.before(engine.info.max_num_seqs, settings.max_queued_requests)
    pipeline = Pipeline(edition, tokenizer, engine, policy(settings), metrics, tracing, audit, line)
    if not settings.generates_elsewhere and begin is None:  # others look after engines on other machines
        engine.watch(report)
    return Runtime(settings, model, encoder, others, tokenizer, pipeline, metrics, tracing, audit, engine.given_up)


async def assemble_router(settings: Settings) -> tuple[Router, BatchingEncoder]:
    """A router alone, over all that plugins offer; no model, adapter or engine is touched. Raises `HLOError`.

    Close the encoder when done.
    """
    declared, hooks = await asyncio.to_thread(declarations, settings)
    encoder = BatchingEncoder(await asyncio.to_thread(load_encoder, settings, hooks), settings.encoder_batch)
    groups, _, others = await _embed_all(settings, declared, encoder)
    return make_router(settings, encoder, groups, others), encoder


def discover(settings: Settings, *, fresh: bool = False, watch: plugins.Watch = nullcontext) -> Discovery:
    """Ask the installed plugins that the settings choose; `fresh` imports them anew. Raises `SettingsError`."""
    return plugins.discover(
        plugins.installed(), chosen=settings.plugins, timeout_s=settings.plugin_timeout_s, fresh=fresh, watch=watch
    )


def declarations(settings: Settings) -> tuple[tuple[Specialty, ...], Hooks]:
    """Every specialty whose declaration holds, whether or not its adapter does, and the plugins' hooks."""
    discovery = discover(settings)
    found: dict[str, Specialty] = {}
    for offer in discovery.offers:
        for specialty in offer.specialties:
            try:
                catalog.check_declaration(specialty)
            except HLOError as error:
                logger.warning("refused %s: %s", offer.plugin, error)
            else:
                found.setdefault(specialty.name, specialty)
    return tuple(found.values()), discovery.hooks


def find_model(settings: Settings) -> BaseModel:
    """The base model that the settings ask for. Raises `ModelError`."""
    if not settings.model:
        logger.info(
            "HLO_MODEL is not set: serving the embedded demonstration model %s, which knows no medicine worth trusting",
            base_model.EMBEDDED_NAME,
        )
    return base_model.find(settings.model, settings.revision, name=settings.base_name, hub=hub(settings))


def search_path(settings: Settings, model: BaseModel) -> tuple[Path, ...]:
    """The folders in which adapters are looked up by name, in order.

    The embedded adapters fit the embedded model alone, and an operator who names a folder means that folder.
    """
    own = settings.adapter_path.expanduser().absolute()
    embedded = base_model.embedded_root() / "adapters"
    if not model.embedded or "adapter_path" in settings.model_fields_set or embedded == own:
        return (own,)
    return (own, embedded)


def hub(settings: Settings) -> Hub:
    """The model hub, with what the lock file pins. Raises `HubError`."""
    return Hub.open(settings.lock_file, production=settings.mode == "production")


def collect(
    settings: Settings, model: BaseModel, *, fresh: bool = False, spans: Spans = UNTRACED
) -> tuple[Catalog, Hooks]:
    """Ask the installed plugins, and check what they offer against the base model.

    `fresh` imports them anew, for a reload.
    """
    remote = hub(settings)

    def check(specialty: Specialty) -> AdapterVersion:
        prompting.check_template(specialty.template)
        if specialty.embeddings is None and not any(specialty.examples.values()):
            raise PluginError(
                f"`{specialty.name}` has no routing examples, so no question would go there.",
                remedy="Declare `examples` or `embeddings`.",
            )
        return check_adapter(settings, model, specialty, remote)[1]

    found = discover(settings, fresh=fresh, watch=lambda name: spans("load plugin", {"hlo.plugin": name}))
    return catalog.build(found.offers, found.refusals, check, found.off), found.hooks


def check_adapter(
    settings: Settings, model: BaseModel, specialty: Specialty, remote: Hub
) -> tuple[Located, AdapterVersion]:
    """Find a specialty's adapter and check all of it against the base model. Raises `AdapterError` or `HubError`."""
    located = adapters.locate(specialty.adapter, search_path(settings, model), remote)
    version = adapters.check(
        located, specialty.name, model.linears, model.name, settings.cache_dir, max_rank=settings.max_lora_rank
    )
    return located, version


def load_encoder(settings: Settings, hooks: Hooks) -> Encoder:
    """A plugin's encoder, the embedded one, or a sentence encoder. Raises `EncoderError` or `PluginError`."""
    # The arithmetic of routing is small: BLAS threads that wait for each other cost ten times what they save, on cores
    # that encoder and engine use too. It holds for this process; engines have their own.
    threadpool_limits(1, user_api="blas")
    offered = hooks.find_encoder(settings.encoder)
    if offered is not None:
        return offered
    own = base_model.embedded_root() / "models" / "hlo-encoder"
    return encoders.load(settings.encoder, settings.encoder_threads, hub(settings), embedded=own)


def load_tokenizer(model: BaseModel) -> Tokenizer:
    """The base model's tokenizer. Raises `ModelError`."""
    from hlo.generation.tokenizer import ChatTokenizer

    return ChatTokenizer.load(model.folder)


async def embed(
    settings: Settings, specialties: Iterable[Specialty], encoder: BatchingEncoder
) -> tuple[tuple[Group, ...], Mapping[str, HLOError]]:
    """Every specialty's examples, embedded, and what is wrong with those that can not be."""
    groups, errors = [], {}
    blocking = _cached(settings, encoder)
    for specialty in specialties:
        try:
            groups.append(await asyncio.to_thread(bank.group, specialty, blocking))
        except HLOError as error:
            errors[specialty.name] = error
    return tuple(groups), errors


async def embed_background(settings: Settings, encoder: BatchingEncoder) -> Background:
    """What no specialty answers, embedded; empty where the settings leave it out. Raises `EncoderError`."""
    if not settings.background:
        return Background()
    return await asyncio.to_thread(Background.load, _cached(settings, encoder))


def thresholds(settings: Settings) -> Thresholds:
    """Where routing decisions change."""
    return Thresholds(settings.min_in_scope, settings.min_probability)


def make_router(settings: Settings, encoder: BatchingEncoder, groups: Sequence[Group], others: Background) -> Router:
    """A router among `groups`, with those `others` behind them that they do not cover.

    A calibration that was made for another encoder or other specialties is not used: the router says so, and has the
    thresholds of the settings. In production it is an error. Raises `CalibrationError`.
    """
    among = Bank.of(groups, background.uncovered(others, groups), dimension=encoder.encoder.dimension)
    router = Router(encoder, among, Scale(), thresholds(settings), others.follow_ups)
    if settings.calibration is None:
        return router
    made = calibration.load(settings.calibration)
    reason = calibration.check(made, encoder.encoder.fingerprint, router.digests, router.background_digest)
    if reason is None:
        router.scale, router.thresholds, router.calibrated = made.scale, made.thresholds, made.histograms
        router.basis = Basis("calibration", made.made, made.tolerated_error, made.confidence)
        return router
    remedy = "Make another with `hlo route calibrate`, or unset HLO_CALIBRATION."
    if settings.mode == "production":
        raise CalibrationError(f"The calibration `{settings.calibration}` does not hold. {reason}", remedy=remedy)
    logger.warning("refused the calibration %s: %s %s", settings.calibration, reason, remedy)
    router.basis = Basis(refused=reason)
    return router


def make_edition(
    settings: Settings,
    found: Catalog,
    encoder: BatchingEncoder,
    groups: Sequence[Group],
    others: Background,
    calls: HookCalls,
) -> Edition:
    """An edition of the specialties that are served."""
    return Edition(found, make_router(settings, encoder, bank.only(groups, tuple(found.entries)), others), calls)


async def _embed_all(
    settings: Settings, specialties: Iterable[Specialty], encoder: BatchingEncoder, spans: Spans = UNTRACED
) -> tuple[tuple[Group, ...], Mapping[str, HLOError], Background]:
    """The specialties' groups, what is wrong with the others, and the background."""
    with spans("embed examples"):
        groups, errors = await embed(settings, specialties, encoder)
        return groups, errors, await embed_background(settings, encoder)


def embeddings_folder(settings: Settings) -> Path:
    """Where the embeddings of examples and of the background are kept, by what they were made from."""
    return settings.cache_dir.expanduser() / "embeddings"


def _cached(settings: Settings, encoder: BatchingEncoder) -> Encoder:
    return CachedEncoder(encoder.blocking(), embeddings_folder(settings))


async def show_effect(entry: Entry, engine: Engine, tokenizer: Tokenizer, within: Span = NOBODY) -> float:
    """Load an adapter; the largest change that it makes to a token's log-probability. Raises any `HLOError`."""
    specialty = entry.specialty
    # Of the specialty's own kind of question, so that the adapter has something to say about it.
    example = next((one for part in specialty.examples.values() for one in part), specialty.title)
    await engine.load(entry.adapter)
    prompt = prompting.build(example, specialty.template, tokenizer, entry.adapter)
    return await check_effect(engine, msgspec.structs.replace(prompt, trace=tuple(traces.outgoing(within).items())))


async def load(
    entry: Entry, engine: Engine, tokenizer: Tokenizer, metrics: Metrics, spans: Spans = UNTRACED
) -> HLOError | None:
    """Load an adapter and show that it has an effect; what is wrong with it, if anything. Raises `EngineDead`."""
    with spans("load adapter", of_adapter(entry.adapter, entry.version)) as span:
        try:
            span.set_attribute("hlo.adapter.effect", await show_effect(entry, engine, tokenizer, span))
        except HLOError as error:
            traces.mark(span, error)
            metrics.loaded(entry.specialty.name, done=False)
            await engine.check_health()
            await engine.unload(entry.adapter)
            return error
    metrics.loaded(entry.specialty.name, done=True)
    return None


def policy(settings: Settings) -> Policy:
    """The operator's decisions about questions."""
    return Policy(
        ambiguous=settings.ambiguous,
        answer_out_of_scope=settings.out_of_scope == "base",
        answer_unrouted=settings.encoder_failure == "base",
        max_question_chars=settings.max_question_chars,
        capture_content=settings.capture_content,
    )
