"""What the unit tests share: a tiny real model and tokenizer, adapters for it, and HLO put together from fakes."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hlo.catalog import Catalog, Entry
from hlo.edition import Edition
from hlo.generation import base_model
from hlo.generation.base_model import BaseModel
from hlo.generation.line import Line
from hlo.pipeline import Pipeline, Policy
from hlo.plugins import Hooks
from hlo.plugins.calls import HookCalls
from hlo.records import Adapter, AdapterVersion, Refusal, Sampling, Specialty
from hlo.routing import bank
from hlo.routing.background import Background
from hlo.routing.bank import Bank, Group
from hlo.routing.batching import BatchingEncoder
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.router import Router
from hlo.telemetry.audit import Audit
from hlo.telemetry.metrics import Metrics
from hlo.telemetry.tracing import Tracing
from hlo.testing import CharacterTokenizer, EchoEngine, HashingEncoder
from tests.embeddings import embeddings
from tests.figures import figure  # noqa: F401 - a fixture

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from hlo.assemble import Runtime
    from hlo.contracts import Encoder
    from hlo.settings import Settings

EXAMPLES = {
    "cardiology": ("chest pain heart pulse", "blood pressure heart valve"),
    "neurology": ("brain headache seizure", "numb nerve brain"),
    "oncology": ("tumor cancer lump", "chemotherapy cancer"),
}
# Fits the fakes' encoder, to which questions that share no word are orthogonal: "valve numb" is ambiguous, and what
# shares no word with an example is out of scope.
SCALE = Scale(gain=1.2, handicap=0.0, floor=0.15)
THRESHOLDS = Thresholds(min_in_scope=0.15, min_probability=0.9)
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] | trim }}[/INST]{% endfor %}"


@dataclass(frozen=True)
class Parts:
    """HLO put together from fakes, and each part of it."""

    pipeline: Pipeline
    router: Router
    engine: EchoEngine
    encoder: BatchingEncoder
    metrics: Metrics
    tracing: Tracing

    def runtime(self, settings: Settings) -> Runtime:
        """What `assemble` would have returned."""
        from hlo.assemble import Runtime

        model = BaseModel("echo", Path("echo"), {}, {}, 0, embedded=False)
        tokenizer = CharacterTokenizer()
        return Runtime(
            settings, model, self.encoder, Background(), tokenizer, self.pipeline, self.metrics, self.tracing
        )


class MakeParts(Protocol):
    """How tests ask for parts; what is not named is a fake or a default."""

    def __call__(
        self,
        *,
        engine: EchoEngine | None = None,
        encoder: Encoder | None = None,
        metrics: Metrics | None = None,
        policy: Policy = ...,
        scale: Scale = ...,
        thresholds: Thresholds = ...,
        background: Sequence[Group] = ...,
        follow_ups: Group | None = None,
        tracing: Tracing | None = None,
        sampling: Sampling = ...,
        hooks: Hooks = ...,
        hook_timeout_s: float = ...,
        audit: Audit | None = ...,
        line: Line | None = ...,
    ) -> Parts:
        """Put HLO together."""


class MakeAdapter(Protocol):
    """How tests ask for an adapter's folder: `config` overrides keys, `tensors` replaces all the weights."""

    def __call__(
        self,
        folder: Path,
        *,
        config: dict[str, Any] | None = None,
        tensors: dict[str, torch.Tensor] | None = None,
        rank: int = 4,
        kinds: tuple[str, ...] = ("q_proj", "v_proj"),
    ) -> Path:
        """Write an adapter and return its folder."""


def pytest_configure() -> None:
    """Have one folder of embeddings for all processes that tests run in or start, one thread each, and no time limits.

    They start after this. On cores that are shared, threads that wait for each other take ten times longer than one.
    """
    embeddings()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    hypothesis.settings.register_profile("busy", deadline=None)  # a machine that does more than this test is no error
    hypothesis.settings.load_profile("busy")


def make_version(name: str) -> AdapterVersion:
    """An adapter version that no folder stands behind."""
    return AdapterVersion(name, hashlib.sha256(name.encode()).hexdigest(), Path(name), 8, ("q_proj",), 1024)


@pytest.fixture
def version() -> Callable[[str], AdapterVersion]:
    """Make an adapter version that no folder stands behind."""
    return make_version


class Until(Protocol):
    """How tests wait for something that happens in another task."""

    async def __call__(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds; fail when it takes far too long."""


@pytest.fixture
def until() -> Until:
    """Wait until a condition holds, while other tasks run."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.0005)

    return wait


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no setting in the environment."""
    for name in list(os.environ):
        if name.upper().startswith(("HLO_", "OTEL_")) or name.upper() in ("MODEL_NAME", "ADAPTER_PATH", "QUANTIZE"):
            monkeypatch.delenv(name)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def make_parts() -> Iterator[MakeParts]:
    """Put HLO together from fakes: three specialties, whose adapters are loaded, and one refusal."""
    with ExitStack() as stack:

        def make(
            *,
            engine: EchoEngine | None = None,
            encoder: Encoder | None = None,
            metrics: Metrics | None = None,
            policy: Policy = Policy(),  # noqa: B008 - frozen
            scale: Scale = SCALE,
            thresholds: Thresholds = THRESHOLDS,
            background: Sequence[Group] = (),
            follow_ups: Group | None = None,
            tracing: Tracing | None = None,
            sampling: Sampling = Sampling(),  # noqa: B008 - frozen
            hooks: Hooks = Hooks(),  # noqa: B008 - frozen
            hook_timeout_s: float = 30,
            audit: Audit | None = None,
            line: Line | None = None,
        ) -> Parts:
            engine, encoder = engine or EchoEngine(), encoder or HashingEncoder()
            metrics, tracing = metrics or Metrics(), tracing or Tracing()
            entries = {}
            for name, examples in EXAMPLES.items():
                specialty = Specialty(
                    name=name,
                    title=name.title(),
                    adapter=Adapter(name),
                    template=f"{name}: {{{{ question }}}}",
                    examples={"patients": examples},
                    sampling=sampling,
                )
                adapter = make_version(name)
                entries[name] = Entry(specialty, adapter, f"plugin-{name}", f"hlo-{name}", "1.2.3")
                engine.loaded[adapter.engine_name] = adapter
            catalog = Catalog(entries, (Refusal("plugin-broken", "broken", "It is broken.", "Mend it."),))
            among = Bank.of(
                [bank.group(entry.specialty, encoder) for entry in entries.values()],
                background,
                dimension=encoder.dimension,
            )
            batching = BatchingEncoder(encoder, 32)
            stack.callback(batching.close)
            router = Router(batching, among, scale, thresholds, follow_ups)
            calls = HookCalls(hooks, hook_timeout_s, metrics.hook_failed)
            stack.callback(calls.close, 30)
            edition = Edition(catalog, router, calls)
            pipeline = Pipeline(edition, CharacterTokenizer(), engine, policy, metrics, tracing, audit, line)
            return Parts(pipeline, router, engine, batching, metrics, tracing)

        yield make


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where the spans of a test are found."""
    return InMemorySpanExporter()


@pytest.fixture
def traced(exporter: InMemorySpanExporter) -> Tracing:
    """Tracing into the exporter."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider.get_tracer("hlo"), provider.shutdown)


@pytest.fixture
def parts(make_parts: MakeParts) -> Parts:
    """HLO put together from fakes."""
    return make_parts()


@pytest.fixture(scope="session")
def fast_tokenizer() -> PreTrainedTokenizerFast:
    """A small real BPE tokenizer in Mistral's manner: both it and its chat template write `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is the heart rate of a patient with chest pain?"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106 - no password
        eos_token="</s>",  # noqa: S106 - no password
        unk_token="<unk>",  # noqa: S106 - no password
        additional_special_tokens=["[INST]", "[/INST]"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: PreTrainedTokenizerFast) -> BaseModel:
    """A Mistral of two layers and hidden size 64, saved to a folder and found there."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = MistralConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    fast_tokenizer.save_pretrained(folder)
    return base_model.find(str(folder))


@pytest.fixture(scope="session")
def make_adapter(tiny_model: BaseModel) -> MakeAdapter:
    """Write adapters for the tiny model in PEFT's layout."""
    import torch
    from safetensors.torch import save_file

    def make(
        folder: Path,
        *,
        config: dict[str, Any] | None = None,
        tensors: dict[str, torch.Tensor] | None = None,
        rank: int = 4,
        kinds: tuple[str, ...] = ("q_proj", "v_proj"),
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        whole = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": list(kinds),
            "bias": "none",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": f"someone/{tiny_model.name}",
            "init_lora_weights": True,
        } | (config or {})
        (folder / "adapter_config.json").write_text(json.dumps(whole), encoding="utf-8")
        if tensors is None:
            generator = torch.Generator().manual_seed(0)
            tensors = {}
            for module, (out_features, in_features) in tiny_model.linears.items():
                if module.rpartition(".")[2] in kinds:
                    prefix = f"base_model.model.{module}"
                    tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator)
                    tensors[f"{prefix}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make


class Plugins(Protocol):
    """How tests install a plugin that offers one specialty; what is installed for real is hidden."""

    def __call__(self, plugin: str, specialty: str, *, reference: str, examples: tuple[str, ...] = ...) -> None:
        """Install it for the time of the test."""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """Install plugins into a folder, each with metadata of its own; only these are found."""
    from hlo import plugins as module

    site = tmp_path / "plugins"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installed, modules = module.installed, []
    monkeypatch.setattr(
        module, "installed", lambda: tuple(one for one in installed() if one.value.startswith("hlo_test_"))
    )

    def install(
        plugin: str, specialty: str, *, reference: str, examples: tuple[str, ...] = ("heart chest pain",)
    ) -> None:
        info = site / f"hlo_test_{plugin}-1.5.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: hlo-test-{plugin}\nVersion: 1.5\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[hlo]\n{plugin} = hlo_test_{plugin}\n", encoding="utf-8")
        (site / f"hlo_test_{plugin}.py").write_text(
            "from hlo import Adapter, Specialty, hookimpl\n\n\n@hookimpl\ndef hlo_specialties():\n"
            f"    return [Specialty({specialty!r}, {specialty.title()!r}, Adapter({reference!r}),"
            f" examples={{'patients': {examples!r}}})]\n",
            encoding="utf-8",
        )
        modules.append(f"hlo_test_{plugin}")
        importlib.invalidate_caches()

    yield install
    for name in modules:
        sys.modules.pop(name, None)
