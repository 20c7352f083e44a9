"""Puts the parts together: settings in, a running pipeline out. The only place where parts meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

import hlo
from hlo import catalog, plugins
from hlo.catalog import Catalog
from hlo.contracts import Encoder, Engine, EngineOptions
from hlo.errors import HLOError, PluginError, SettingsError
from hlo.generation import adapters, base_model, prompting
from hlo.generation.base_model import BaseModel
from hlo.generation.effect import check_effect
from hlo.generation.prompting import Tokenizer
from hlo.pipeline import Pipeline, Policy
from hlo.records import AdapterVersion, Specialty
from hlo.routing import prototypes
from hlo.routing.batching import BatchingEncoder
from hlo.routing.decision import Thresholds
from hlo.routing.prototypes import Prototypes
from hlo.routing.router import Router
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics
from hlo.telemetry.tracing import Tracing

logger = logging.getLogger("hlo")

Report = Callable[[str], None]


class Runtime(Struct, frozen=True):
    """A running HLO. Close it when done."""

    settings: Settings
    model: BaseModel
    encoder: Encoder
    pipeline: Pipeline
    metrics: Metrics
    _router: Router
    _tracing: Tracing

    async def close(self) -> None:
        """Stop the engine and the encoder; nothing is left behind."""
        self._router.close()
        await self.pipeline.engine.close()
        self._tracing.close()


async def assemble(settings: Settings, metrics: Metrics, report: Report) -> Runtime:
    """Start everything; takes tens of seconds. `report` hears what is being done. Raises `HLOError`."""
    tracing = Tracing.from_environment(hlo.__version__)
    report("looking for the base model")
    model = await asyncio.to_thread(find_model, settings)
    report("checking plugins and adapters")
    found = await asyncio.to_thread(collect, settings, model)
    report("loading the encoder")
    encoder = await asyncio.to_thread(load_encoder, settings)
    report(f"starting the engine with {len(found.entries)} adapters, and embedding the routing examples")
    tokenizer = await asyncio.to_thread(load_tokenizer, model)
    engine, (vectors, unroutable) = await asyncio.gather(
        start_engine(settings, model, found),
        asyncio.to_thread(embed, [entry.specialty for entry in found.entries.values()], encoder),
    )
    try:
        found = catalog.keep(found, unroutable)
        report("loading the adapters and checking that each changes the output")
        found = catalog.keep(found, await load_adapters(found, engine, tokenizer))
    except BaseException:
        await engine.close()
        raise
    for refusal in found.refusals:
        logger.warning("refused %s: %s %s", refusal.specialty or refusal.plugin, refusal.reason, refusal.remedy)
    metrics.catalog(served=len(found.entries), refused=len(found.refusals))
    router = make_router(settings, encoder, vectors, tuple(found.entries))
    pipeline = Pipeline(found, router, tokenizer, engine, policy(settings), metrics, tracing)
    return Runtime(settings, model, encoder, pipeline, metrics, router, tracing)


async def assemble_router(settings: Settings) -> Router:
    """A router alone, over all that plugins offer; no model, adapter or engine is touched. Raises `HLOError`."""
    declared = await asyncio.to_thread(declarations)
    encoder = await asyncio.to_thread(load_encoder, settings)
    vectors, _ = await asyncio.to_thread(embed, declared, encoder)
    return make_router(settings, encoder, vectors, tuple(vectors.names))


def declarations() -> tuple[Specialty, ...]:
    """Every specialty whose declaration holds, whether or not its adapter does."""
    offers, _ = plugins.collect(plugins.installed())
    found: dict[str, Specialty] = {}
    for offer in offers:
        for specialty in offer.specialties:
            try:
                catalog.check_declaration(specialty)
            except HLOError as error:
                logger.warning("refused %s: %s", offer.plugin, error)
            else:
                found.setdefault(specialty.name, specialty)
    return tuple(found.values())


def find_model(settings: Settings) -> BaseModel:
    """The base model that the settings ask for. Raises `ModelError`."""
    if not settings.model:
        logger.info(
            "HLO_MODEL is not set: serving the embedded demonstration model %s, which knows no medicine worth trusting",
            base_model.EMBEDDED_NAME,
        )
    return base_model.find(settings.model, settings.revision, name=settings.base_name)


def search_path(settings: Settings, model: BaseModel) -> tuple[Path, ...]:
    """The folders in which adapters are looked up by name, in order.

    The embedded adapters fit the embedded model alone, and an operator who names a folder means that folder.
    """
    own = settings.adapter_path.expanduser().absolute()
    embedded = base_model.embedded_root() / "adapters"
    if not model.embedded or "adapter_path" in settings.model_fields_set or embedded == own:
        return (own,)
    return (own, embedded)


def collect(settings: Settings, model: BaseModel) -> Catalog:
    """Ask the installed plugins, and check what they offer against the base model."""
    search, store = search_path(settings, model), settings.cache_dir.expanduser()

    def check(specialty: Specialty) -> AdapterVersion:
        prompting.check_template(specialty.template)
        if specialty.embeddings is None and not any(specialty.examples.values()):
            raise PluginError(
                f"`{specialty.name}` has no routing examples, so no question would go there.",
                remedy="Declare `examples` or `embeddings`.",
            )
        folder = adapters.locate(specialty.adapter, search)
        return adapters.check(folder, specialty.name, model.linears, model.name, store)

    return catalog.build(*plugins.collect(plugins.installed()), check)


def load_encoder(settings: Settings) -> Encoder:
    """The sentence encoder. Raises `EncoderError`."""
    from hlo.routing.sentence_encoder import SentenceEncoder

    return SentenceEncoder.load(settings.encoder, settings.encoder_threads)


def load_tokenizer(model: BaseModel) -> Tokenizer:
    """The base model's tokenizer. Raises `ModelError`."""
    from hlo.generation.tokenizer import ChatTokenizer

    return ChatTokenizer.load(model.folder)


def embed(specialties: Iterable[Specialty], encoder: Encoder) -> tuple[Prototypes, Mapping[str, HLOError]]:
    """Every specialty's prototype, and what is wrong with those that can have none."""
    pairs, errors = [], {}
    for specialty in specialties:
        try:
            pairs.append((specialty.name, prototypes.prototype(specialty, encoder)))
        except HLOError as error:
            errors[specialty.name] = error
    return prototypes.stack(pairs, encoder.dimension), errors


def make_router(settings: Settings, encoder: Encoder, vectors: Prototypes, names: Collection[str]) -> Router:
    """A router over the specialties that are served."""
    return Router(
        BatchingEncoder(encoder, settings.encoder_batch),
        prototypes.only(vectors, names),
        Thresholds(settings.min_score, settings.min_margin),
    )


async def start_engine(settings: Settings, model: BaseModel, found: Catalog) -> Engine:
    """Start vLLM with room for every adapter at once. Raises `HLOError`."""
    from hlo.generation import vllm_engine

    if vllm_engine.version() is None:
        raise SettingsError(
            "vLLM is not installed.", remedy="`pip install 'hlo[gpu]'` on a GPU machine, `'hlo[cpu]'` elsewhere."
        )
    chosen = device(settings)
    versions = [entry.adapter for entry in found.entries.values()]
    kinds = tuple(sorted({kind for version in versions for kind in version.modules}))
    null = None
    if versions and vllm_engine.needs_null(chosen):
        store = settings.cache_dir.expanduser()
        null = await asyncio.to_thread(adapters.null, model.linears, model.name, frozenset(kinds), store)
    options = EngineOptions(
        model=model.folder,
        name=model.name,
        device=chosen,
        dtype="float32" if settings.dtype == "auto" and chosen == "cpu" else settings.dtype,
        quantization=settings.effective_quantization,
        slots=len(versions) + (1 if null else 0),
        rank=max((version.rank for version in versions), default=0),
        kinds=kinds,
        null=null,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_queued_requests=settings.max_queued_requests,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
        enforce_eager=chosen == "cpu" if settings.enforce_eager is None else settings.enforce_eager,
        shutdown_grace_s=settings.shutdown_grace_s,
        log_level=settings.log_level,
    )
    return await vllm_engine.VllmEngine.start(options)


async def load_adapters(found: Catalog, engine: Engine, tokenizer: Tokenizer) -> Mapping[str, HLOError]:
    """Load each adapter and show that it has an effect; what is wrong with those that do not."""
    errors: dict[str, HLOError] = {}
    for name, entry in found.entries.items():
        try:
            await engine.load(entry.adapter)
            # Of the specialty's own kind of question, so that the adapter has something to say about it.
            example = next((one for part in entry.specialty.examples.values() for one in part), entry.specialty.title)
            await check_effect(engine, prompting.build(example, entry.specialty.template, tokenizer, entry.adapter))
        except HLOError as error:
            await engine.check_health()
            await engine.unload(entry.adapter)
            errors[name] = error
    return errors


def policy(settings: Settings) -> Policy:
    """The operator's decisions about questions."""
    return Policy(
        answer_ambiguous=settings.ambiguous == "first",
        answer_out_of_scope=settings.out_of_scope == "base",
        max_question_chars=settings.max_question_chars,
    )


def device(settings: Settings) -> Literal["cpu", "cuda"]:
    """Where the model is to run. Raises `SettingsError` when that is not there."""
    import torch

    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise SettingsError(
            "HLO_DEVICE=cuda, but no CUDA device is usable.",
            remedy="Check the driver with `nvidia-smi`, install 'hlo[gpu]', or set HLO_DEVICE=cpu.",
        )
    return "cuda" if available and settings.device != "cpu" else "cpu"
