"""Where the parts meet, with fakes for the engine and the encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from pydantic import SecretStr

from hlo import assemble, engines
from hlo.catalog import Catalog, Entry
from hlo.contracts import EngineOptions
from hlo.errors import AdapterError, CalibrationError, EncoderError, EngineDead, ModelError, SettingsError
from hlo.generation import adapters, base_model
from hlo.generation.memory import Demand
from hlo.generation.openai_engine import OpenAIEngine
from hlo.generation.transformers_engine import TransformersEngine
from hlo.generation.vllm_engine import VllmEngine
from hlo.pipeline import Policy
from hlo.plugins import Hooks
from hlo.plugins.calls import HookCalls
from hlo.plugins.hooks import Hook
from hlo.records import Adapter, AdapterVersion, Embeddings, Prompt, Specialty
from hlo.routing import background, bank, calibration
from hlo.routing.background import Background
from hlo.routing.batching import BatchingEncoder
from hlo.routing.calibration import Calibration, Counts, Results
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.evaluation import BINS
from hlo.routing.intervals import Share
from hlo.routing.router import Router
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics
from hlo.testing import CharacterTokenizer, EchoEngine, HashingEncoder

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from tests.conftest import MakeAdapter, Plugins

pytestmark = pytest.mark.usefixtures("clean_environment")


def specialty(name: str, **fields: Any) -> Specialty:
    given: dict[str, Any] = {"name": name, "title": name.title(), "adapter": Adapter(name)} | fields
    return Specialty(**given)


@pytest.fixture
def settings(tiny_model: BaseModel, tmp_path: Path) -> Settings:
    """Settings for the tiny model, with adapters and cache in folders of the test's own."""
    return Settings(
        model=str(tiny_model.folder), adapter_path=tmp_path / "adapters", cache_dir=tmp_path / "cache", device="cpu"
    )


def test_the_model_is_the_one_asked_for(settings: Settings) -> None:
    """The base model is found by the settings, under the name that they give."""
    assert assemble.find_model(settings).name == "tiny"
    renamed = settings.model_copy(update={"base_name": "other"})
    assert assemble.find_model(renamed).name == "other"
    with pytest.raises(ModelError):
        assemble.find_model(Settings(model="./no/such/folder"))


def test_plugins_are_checked_against_the_model(
    settings: Settings, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """What installed plugins offer is served from checked copies; each that fails is refused by name, alone."""
    folder = make_adapter(tmp_path / "adapters" / "heart")
    make_adapter(tmp_path / "adapters" / "foreign", config={"base_model_name_or_path": "org/Mistral-7B"})
    plugins("heart", "heart", reference="heart")
    plugins("ghost", "ghost", reference="nowhere")
    plugins("foreign", "foreign", reference="foreign")
    plugins("silent", "silent", reference="heart", examples=())
    plugins("twin", "heart", reference="heart")
    found, _ = assemble.collect(settings, tiny_model)
    assert list(found.entries) == ["heart"]
    entry = found.entries["heart"]
    assert (entry.distribution, entry.version) == ("hlo-test-heart", "1.5")
    assert entry.adapter.path == tmp_path / "cache" / "adapters" / adapters.content_hash(folder)
    reasons = {refusal.plugin: refusal.reason for refusal in found.refusals}
    assert "`nowhere` was not found" in reasons["ghost"]
    assert "`Mistral-7B`" in reasons["foreign"]
    assert "no routing examples" in reasons["silent"]
    assert "taken by the plugin `heart`" in reasons["twin"]


def test_a_bad_template_is_refused(
    settings: Settings, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """A specialty whose template does not render, for whatever reason, is refused, and the others are served."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    for number, template in enumerate(("{{ question", "{{ 1 / 0 }}{{ question }}")):
        plugins(f"bad{number}", f"bad{number}", reference="heart")
        module = tmp_path / "plugins" / f"hlo_test_bad{number}.py"
        text = module.read_text(encoding="utf-8")
        module.write_text(text.replace("examples=", f"template={template!r}, examples="), encoding="utf-8")
    found, _ = assemble.collect(settings, tiny_model)
    assert list(found.entries) == ["heart"]
    assert sorted(str(refusal.specialty) for refusal in found.refusals) == ["bad0", "bad1"]


def test_a_package_that_is_not_there_is_refused(
    settings: Settings, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """A specialty whose adapter lies in a package that does not exist is refused, and the others are served."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    plugins("lost", "lost", reference="heart")
    module = tmp_path / "plugins" / "hlo_test_lost.py"
    text = module.read_text(encoding="utf-8").replace("Adapter('heart')", "Adapter('heart', package='no_such_package')")
    module.write_text(text, encoding="utf-8")
    found, _ = assemble.collect(settings, tiny_model)
    assert list(found.entries) == ["heart"]
    assert [refusal.specialty for refusal in found.refusals] == ["lost"]


def test_declarations_need_no_adapter(plugins: Plugins) -> None:
    """Routing alone needs the declarations that hold, the first of each name, whether or not their adapters do."""
    plugins("heart", "heart", reference="nowhere")
    plugins("twin", "heart", reference="elsewhere")
    plugins("bad", "Bad Name", reference="x")
    assert [(one.name, one.adapter.reference) for one in assemble.declarations(Settings())[0]] == [("heart", "nowhere")]


def test_names_are_looked_up_under_the_adapter_path(settings: Settings, tiny_model: BaseModel) -> None:
    """Adapters are looked up in the operator's folder; in the demonstration's too when model and folder are unset."""
    embedded = type(tiny_model)("demo", Path("x"), {}, {}, 0, embedded=True)
    own = Path("adapters").absolute()
    assert assemble.search_path(settings, tiny_model) == (settings.adapter_path,)
    assert assemble.search_path(settings, embedded) == (settings.adapter_path,)
    assert assemble.search_path(Settings(), tiny_model) == (own,)
    assert assemble.search_path(Settings(), embedded) == (own, base_model.embedded_root() / "adapters")


@pytest.fixture
def encoder() -> Iterator[BatchingEncoder]:
    """The hashing encoder, for coroutines."""
    batching = BatchingEncoder(HashingEncoder(), 2)
    yield batching
    batching.close()


async def test_embedding_tells_who_can_not_be_routed(encoder: BatchingEncoder, tmp_path: Path) -> None:
    """Specialties that can be embedded have groups, and each of the others its error, whatever is wrong with it."""
    good = specialty("good", examples={"p": ("heart",)})
    foreign = specialty("foreign", embeddings=Embeddings("other", {"p": [[1.0] * 256]}))
    ragged = specialty("ragged", embeddings=Embeddings("hashing-256", {"p": [[1.0] * 256, [1.0]]}))
    groups, errors = await assemble.embed(Settings(cache_dir=tmp_path), [foreign, good, ragged], encoder)
    assert [(group.name, group.examples.shape, group.texts) for group in groups] == [("good", (1, 256), ("heart",))]
    assert set(errors) == {"foreign", "ragged"}


async def test_embedding_in_batches_gives_what_embedding_at_once_gives(
    encoder: BatchingEncoder, tmp_path: Path
) -> None:
    """Examples are embedded in batches, between which questions have their turn, and their vectors are the same."""
    many = specialty("many", examples={"p": ("heart", "pulse", "chest pain", "valve", "artery"), "c": ("vein",)})
    ((found,), _) = await assemble.embed(Settings(cache_dir=tmp_path), [many], encoder)
    at_once = bank.group(many, HashingEncoder())
    np.testing.assert_allclose(found.examples, at_once.examples, atol=1e-6)
    assert (found.texts, found.digest) == (at_once.texts, at_once.digest)


async def test_no_specialty_at_all_can_be_embedded(encoder: BatchingEncoder, tmp_path: Path) -> None:
    """Without any specialty there are no groups, and that is no error."""
    assert await assemble.embed(Settings(cache_dir=tmp_path), [], encoder) == ((), {})


async def test_an_edition_routes_to_what_is_served(encoder: BatchingEncoder, tmp_path: Path) -> None:
    """An edition routes over the specialties that are served, with the operator's thresholds."""
    offered = [specialty(name, examples={"p": (name,)}) for name in ("heart", "brain")]
    groups, _ = await assemble.embed(Settings(cache_dir=tmp_path), offered, encoder)
    calls = HookCalls(Hooks(), 1, Metrics().hook_failed)
    served = Catalog({"heart": entry("heart", "1" * 64)}, ())
    strict, lenient = (
        assemble.make_edition(Settings(min_in_scope=least), served, encoder, groups, Background(), calls)
        for least in (0.999999, 0.5)
    )
    asked = ["heart", "brain", "heart attack pain cough"]
    routes = await strict.router.route_many(asked)
    assert [route.specialty for route in routes] == ["heart", None, None]
    assert [len(route.scores) for route in routes] == [1, 1, 1]
    assert [route.specialty for route in await lenient.router.route_many(asked)] == ["heart", None, "heart"]


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_background_is_the_operators_choice(wanted: bool, encoder: BatchingEncoder, tmp_path: Path) -> None:
    """The background is embedded and stands behind the router, unless the operator leaves it out."""
    settings = Settings(background=wanted, cache_dir=tmp_path)
    others = await assemble.embed_background(settings, encoder)
    offered = [specialty("dentistry", examples={"p": ("tooth",)})]
    groups, _ = await assemble.embed(settings, offered, encoder)
    router = assemble.make_router(settings, encoder, groups, others)
    assert (others.follow_ups is not None) == bool(others.groups) == wanted
    behind = {group.name: group.digest for group in router.bank.background}
    assert behind == {group.name: group.digest for group in background.uncovered(others, groups)}
    assert bool(router.bank.background) == wanted
    assert "dentistry" not in behind
    (found,) = await router.compare(["tooth"])
    assert (found.background is not None) == wanted


def entry(name: str, sha256: str, **fields: Any) -> Entry:
    version = AdapterVersion(name, sha256, Path(name), 8, ("q_proj",), 1)
    return Entry(specialty(name, **fields), version, f"plugin-{name}", name, "1")


class Picky(EchoEngine):
    """An engine that loads no adapter called `bad`, and dies of one called `deadly`."""

    async def load(self, adapter: AdapterVersion) -> None:
        """Load, refuse, or die."""
        if adapter.name == "deadly":
            self.closed = True
        if adapter.name in ("bad", "deadly"):
            raise AdapterError("It does not fit.", remedy="Train another.")
        await super().load(adapter)


async def test_adapters_are_loaded_and_must_have_an_effect() -> None:
    """Each adapter is loaded and shown to have an effect; one that fails is unloaded, told, and stops no other."""
    entries = {
        one.specialty.name: one for one in (entry("a", "1" * 64), entry("bad", "2" * 64), entry("idle", "0" * 64))
    }
    engine = Picky()
    metrics = Metrics()
    errors = {name: await assemble.load(one, engine, CharacterTokenizer(), metrics) for name, one in entries.items()}
    assert set(engine.loaded) == {entries["a"].adapter.engine_name}
    assert {name: error and error.message.split(":")[0] for name, error in errors.items()} == {
        "a": None,
        "bad": "It does not fit.",
        "idle": "The adapter `idle` changes nothing",
    }
    told = metrics.render().decode()
    assert 'hlo_adapter_loads_total{outcome="done",specialty="a"} 1.0' in told
    assert 'hlo_adapter_loads_total{outcome="failed",specialty="bad"} 1.0' in told


async def test_an_adapter_that_kills_the_engine_is_an_error() -> None:
    """When the engine dies of an adapter, starting fails and says so."""
    with pytest.raises(EngineDead):
        await assemble.load(entry("deadly", "1" * 64), Picky(), CharacterTokenizer(), Metrics())


async def test_the_effect_is_shown_on_a_question_of_the_specialtys_own() -> None:
    """An adapter's effect is looked for on an example question in the specialty's template, or else on its title."""

    class Scoring(EchoEngine):
        """An engine that remembers what it scored."""

        scored: list[str]

        async def score(self, prompt: Prompt) -> tuple[float, ...]:
            """Remember, and score."""
            self.scored.append("".join(chr(abs(number)) for number in prompt.token_ids))
            return await super().score(prompt)

    engine = Scoring()
    engine.scored = []
    given = {"template": "Q: {{ question }}", "examples": {"none": (), "p": ("Why?", "How?")}}
    for one in (entry("a", "1" * 64, **given), entry("b", "1" * 64, title="Brain")):
        assert await assemble.load(one, engine, CharacterTokenizer(), Metrics()) is None
    assert set(engine.scored) == {"<Q: Why?>", "<Brain>"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Policy("first", True, 4000)),
        ({"ambiguous": "base"}, Policy("base", True, 4000)),
        ({"ambiguous": "ask"}, Policy("ask", True, 4000)),
        ({"encoder_failure": "base"}, Policy(answer_unrouted=True)),
        ({"out_of_scope": "refuse", "max_question_chars": 7}, Policy("first", False, 7)),
    ],
)
def test_the_policy_is_the_operators(changes: dict[str, Any], expected: Policy) -> None:
    """What the operator chose about questions becomes the pipeline's policy."""
    assert assemble.policy(Settings(**changes)) == expected


@pytest.mark.parametrize(
    ("asked", "cuda", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_the_device_is_what_is_there(asked: Any, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the model runs on a GPU where there is one, and on the CPU where that is asked for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert engines.device(Settings(device=asked)) == expected


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is asked for but not there is refused, and the CPU is not taken silently."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingsError, match="HLO_DEVICE=cuda") as caught:
        engines.device(Settings(device="cuda"))
    assert "nvidia-smi" in caught.value.remedy


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is to be divided among, or copied to, more GPUs than there are is refused with both numbers."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert engines.device(Settings(tensor_parallel_size=2)) == "cuda"
    for asked in (
        Settings(tensor_parallel_size=2, data_parallel_size=2),
        Settings(tensor_parallel_size=2, engine_arguments={"data_parallel_size": 2}),
        Settings(engine_arguments={"tensor_parallel_size": 4}),
    ):
        with pytest.raises(SettingsError, match="needs 4 GPUs, and this machine has 2"):
            engines.device(asked)


def test_the_engines_own_number_of_gpus_comes_first(settings: Settings, tiny_model: BaseModel) -> None:
    """How a model is divided is what the settings say, unless the engine's own arguments say otherwise; memory too."""

    def options(**arguments: object) -> EngineOptions:
        chosen = settings.model_copy(update={"tensor_parallel_size": 2, "engine_arguments": arguments})
        return engines.options(chosen, tiny_model, Catalog({}, (), ()), "cuda")

    assert (options().tensor_parallel_size, options().data_parallel_size) == (2, 1)
    own = options(tensor_parallel_size=4, data_parallel_size=3)
    assert (own.tensor_parallel_size, own.data_parallel_size) == (4, 3)
    assert Demand.of(own, tiny_model).devices == 4
    for wrong in (0, "2", 1.5):
        with pytest.raises(SettingsError, match=r"`tensor_parallel_size` is .+ from 1 on"):
            options(tensor_parallel_size=wrong)


def test_the_engine_of_servers_is_taken_where_some_are_named(
    settings: Settings, tiny_model: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Addresses of servers are reason enough to use them, and reach the engine with the key, which is never shown."""
    caplog.set_level("INFO", "hlo")
    chosen = settings.model_copy(update={"engine_urls": "http://a:1,http://b:2", "engine_key": SecretStr("a-key")})
    assert engines.find(chosen, Hooks()) == OpenAIEngine.start
    assert "in front of 2 servers" in caplog.text
    options = engines.options(chosen, tiny_model, Catalog({}, (), ()), "cpu")
    assert options.servers is not None
    assert options.servers.urls == ("http://a:1", "http://b:2")
    assert options.servers.key is not None
    assert options.servers.key.get_secret_value() == "a-key"
    assert "a-key" not in repr(options)


async def test_the_engine_of_servers_needs_no_device(
    settings: Settings, tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers elsewhere are given an adapter of zeros, in case they are CPUs, unless they are said to be GPUs."""
    given = []

    async def started(options: EngineOptions) -> EchoEngine:
        given.append(options.null is not None)
        return EchoEngine()

    monkeypatch.setattr("hlo.generation.openai_engine.OpenAIEngine.start", started)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device in ("auto", "cuda"):
        chosen = settings.model_copy(update={"engine_urls": "http://a:1", "device": device})
        await engines.start(chosen, tiny_model, Catalog({}, (), ()), Hooks())
    assert given == [True, False]


@pytest.mark.parametrize(
    ("asked", "vllm", "peft", "started", "logged"),
    [
        ("auto", "1", "2", VllmEngine.start, "engine: vllm 1"),
        ("auto", None, "2", TransformersEngine.start, "engine: transformers 2, since vLLM is not installed"),
        ("vllm", "1", "2", VllmEngine.start, "engine: vllm 1, as HLO_ENGINE says"),
        ("transformers", "1", "2", TransformersEngine.start, "engine: transformers 2, as HLO_ENGINE says"),
        ("own", None, None, EchoEngine, "engine: own, from a plugin"),
    ],
)
def test_the_engine_is_the_one_asked_for(
    asked: str,
    vllm: str | None,
    peft: str | None,
    started: object,
    logged: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """vLLM is taken where it is installed, unless another engine is asked for by name; the log says which it is."""
    caplog.set_level("INFO", "hlo")
    monkeypatch.setattr("hlo.generation.vllm_engine.version", lambda: vllm)
    monkeypatch.setattr("hlo.generation.transformers_engine.version", lambda: peft)
    hooks = Hooks(engine=(Hook("p", lambda name: EchoEngine if name == "own" else None, ("name",)),))
    assert engines.find(Settings(engine=asked), hooks) == started
    assert logged in caplog.text


@pytest.mark.parametrize(
    ("asked", "said", "remedy"),
    [
        ("auto", "vLLM is not installed", "hlo[transformers]"),
        ("vllm", "vLLM is not installed", "hlo[gpu]"),
        ("transformers", "peft", "hlo[transformers]"),
        ("tgi", "HLO_ENGINE=tgi is no engine", "auto, vllm, openai or transformers"),
    ],
)
def test_a_missing_engine_is_refused(asked: str, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is not installed, or that nobody knows, is refused with what to do."""
    for engine in ("vllm_engine", "transformers_engine"):
        monkeypatch.setattr(f"hlo.generation.{engine}.version", lambda: None)
    with pytest.raises(SettingsError, match=said) as caught:
        engines.find(Settings(engine=asked), Hooks())
    assert remedy in caught.value.remedy


def test_a_plugins_encoder_is_taken() -> None:
    """An encoder that a plugin offers under the name that the operator gave is the one in use."""
    mine = HashingEncoder()
    hooks = Hooks(encoder=(Hook("p", lambda name: mine if name == "mine" else None, ("name",)),))
    assert assemble.load_encoder(Settings(encoder="mine"), hooks) is mine
    with pytest.raises(EncoderError):
        assemble.load_encoder(Settings(encoder="./no/such/folder"), hooks)


async def test_an_engine_does_not_outlive_a_failed_start(
    settings: Settings, plugins: Plugins, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When embedding fails for whatever reason while the engine starts, the engine is closed again."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    engine = EchoEngine()

    async def start(*_: Any) -> EchoEngine:
        return engine

    async def embed(*_: Any) -> Any:
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    monkeypatch.setattr(engines, "start", start)
    monkeypatch.setattr(assemble, "load_encoder", lambda *_: HashingEncoder())
    monkeypatch.setattr(assemble, "embed", embed)
    with pytest.raises(ZeroDivisionError):
        await assemble.assemble(settings, Metrics(), lambda stage: None)
    assert engine.closed


def calibrated(router: Router, encoder: BatchingEncoder, folder: Path, **changes: Any) -> Path:
    """A calibration's file that fits the router, but for what `changes` says."""
    nothing = Share(0, 0, None, 0.0, 1.0)
    specialties: dict[str, str] = changes.get("specialties", dict(router.digests))
    made = Calibration(
        format=calibration.FORMAT,
        made=date(2026, 1, 2),
        encoder=encoder.encoder.name,
        fingerprint=encoder.encoder.fingerprint,
        specialties=specialties,
        background=router.background_digest,
        scale=Scale(2.0, 0.0, 0.25),
        thresholds=Thresholds(0.125, 0.75),
        tolerated_error=0.05,
        confidence=0.95,
        tolerated_rejection=0.1,
        counts=Counts(1, 1, 1),
        results=Results(nothing, nothing, 1.0, nothing, nothing, nothing),
        histograms=dict.fromkeys(specialties, (0,) * BINS),
    )
    file = folder / "calibration.json"
    calibration.save(msgspec.structs.replace(made, **changes), file)
    return file


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"fingerprint": "another"}, "`another`"),
        ({"specialties": {}}, "`heart` new"),
        ({"specialties": {"heart": "0" * 64}}, "`heart` changed"),
        ({"background": "0" * 64}, "background"),
    ],
    ids=["holds", "encoder", "new", "changed", "background"],
)
async def test_a_calibration_holds_for_what_it_was_made_with(
    encoder: BatchingEncoder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    told: str | None,
) -> None:
    """A calibration of another encoder or other specialties is refused with its reason, and in production an error."""
    settings = Settings(cache_dir=tmp_path, min_probability=0.25)
    groups, _ = await assemble.embed(settings, [specialty("heart", examples={"p": ("heart",)})], encoder)
    plain = assemble.make_router(settings, encoder, groups, Background())
    assert (plain.basis.kind, plain.thresholds.min_probability) == ("settings", 0.25)
    file = calibrated(plain, encoder, tmp_path, **changes)
    settings = Settings(cache_dir=tmp_path, min_probability=0.25, calibration=file)
    router = assemble.make_router(settings, encoder, groups, Background())
    strict = Settings(cache_dir=tmp_path, calibration=file, mode="production")
    if told is None:
        assert router.thresholds == assemble.make_router(strict, encoder, groups, Background()).thresholds
        assert (router.thresholds, router.scale) == (Thresholds(0.125, 0.75), Scale(2.0, 0.0, 0.25))
        assert (router.basis.kind, router.basis.tolerated_error, router.basis.refused) == ("calibration", 0.05, None)
        return
    assert router.thresholds.min_probability == 0.25
    assert told in str(router.basis.refused)
    assert told in caplog.text
    with pytest.raises(CalibrationError, match="does not hold") as caught:
        assemble.make_router(strict, encoder, groups, Background())
    assert "hlo route calibrate" in caught.value.remedy


@pytest.mark.parametrize(
    ("names", "spare", "said"),
    [
        (("heart", "skin"), 2, "room for 4 adapters (2 installed, HLO_SPARE_ADAPTERS=2), of ranks up to 8 (as `heart`"),
        ((), 1, "room for 1 adapter (0 installed, HLO_SPARE_ADAPTERS=1), of ranks up to 64 (HLO_MAX_LORA_RANK"),
        ((), 0, "room for no adapter: none is installed, and HLO_SPARE_ADAPTERS is 0"),
    ],
)
def test_the_engine_is_started_for_what_is_installed(
    names: tuple[str, ...], spare: int, said: str, tiny_model: BaseModel
) -> None:
    """Slots, rank and kinds of layer come from the adapters that are installed, and the reason says so."""
    settings = Settings(spare_adapters=spare)
    found = Catalog({name: entry(name, "0" * 64) for name in names}, (), ())
    options = engines.options(settings, tiny_model, found, "cpu")
    assert (options.slots, options.spare) == (len(names) + spare, spare)
    assert options.kinds == ("q_proj",) if names else len(options.kinds) == 7
    assert options.reason.startswith(said)
