"""The conformance kit: a good plugin passes, and each kind of bad one gets its own finding."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from hlo import assemble, engines, scaffold
from hlo import plugins as all_plugins
from hlo.contracts import EngineOptions
from hlo.errors import EncoderError, HLOError, SettingsError
from hlo.generation.tokenizer import ChatTokenizer
from hlo.records import Finding
from hlo.settings import Settings
from hlo.testing import EchoEngine, HashingEncoder
from hlo.testing.catchment import Asked
from hlo.testing.conformance import Examination, examine, package
from hlo.testing.conformance.probes import PROBES
from hlo.testing.fixtures import Conformance
from hlo.testing.fixtures import conformance as conformance_fixture
from hlo.testing.subject import find
from tests.embeddings import cache_dir
from tests.testing.conftest import CARD, CODE, EXAMPLES, INSTALLED, PYPROJECT, Project

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.conftest import MakeAdapter, Plugins

TOPICS = (
    "metadata",
    "hooks",
    "declaration",
    "template",
    "adapter",
    "effect",
    "examples",
    "licence",
    "size",
    "catchment",
)


def look(path: Path | str, settings: Settings, **options: Any) -> Examination:
    """Examine with the encoder that knows words only, and no engine."""
    with find(path) as subject:
        given: dict[str, Any] = {"engine": False, "encoder": HashingEncoder()} | options
        return examine(subject, settings, **given)


def told(found: Examination, topic: str, state: str) -> str:
    return "\n".join(f"{one.text} {one.remedy}" for one in found.findings if (one.topic, one.state) == (topic, state))


def worse(found: Examination) -> list[tuple[str, str]]:
    return [(one.topic, one.state) for one in found.findings if one.state != "ok"]


def test_a_good_plugin(project: Project, settings: Settings) -> None:
    """A good plugin passes every check, with its adapter's effect measured in a real engine."""
    found = look(project(), settings, engine=True)
    assert worse(found) == []
    assert tuple(dict.fromkeys(one.topic for one in found.findings)) == TOPICS
    assert "a token's log-probability changes by up to" in told(found, "effect", "ok")
    assert "transformers" in told(found, "effect", "ok")
    assert "64 patients" in told(found, "examples", "ok")
    assert found.audit is not None
    assert not found.trouble


def offering(**others: str) -> str:
    """The end of a module that offers one specialty, with these fields as they are written."""
    fields = ", ".join(f"{name}={value}" for name, value in others.items())
    return f"@hookimpl\ndef hlo_specialties():\n    return [specialty({fields})]\n"


def hook(body: str) -> str:
    return f"@hookimpl\ndef hlo_question(question):\n    {body}\n"


BAD_CODE: dict[str, tuple[str, str, str, str]] = {
    "import": ("raise RuntimeError('broken')", "hooks", "trouble", "RuntimeError: broken"),
    "exit": ("import os; os._exit(3)", "hooks", "trouble", "ended the process"),
    "misspelt": ("@hookimpl\ndef hlo_specialities(): pass", "hooks", "trouble", "is not a hook of HLO"),
    "unmarked": ("def hlo_answer(): pass", "hooks", "trouble", "is not marked"),
    "no list": ("@hookimpl\ndef hlo_specialties(): return 3", "hooks", "trouble", "must return a list"),
    "no hook": ("del hlo_specialties", "hooks", "trouble", "implements no hook"),
    "question raises": (hook("raise KeyError(question.text)"), "hooks", "trouble", "raised KeyError for"),
    "question wrong": (hook("return question.text"), "hooks", "trouble", "returned str for"),
    "question pins": (hook("return Screening(specialty='ghost')"), "hooks", "trouble", "pinned `ghost`"),
    "question pins no name": (hook("return Screening(specialty=[1])"), "hooks", "trouble", "pinned `[1]`"),
    "question exits": (hook("raise SystemExit"), "hooks", "trouble", "raised SystemExit for"),
    "encoder greedy": (
        "@hookimpl\ndef hlo_encoder(name): return object()",
        "hooks",
        "trouble",
        "`hlo_encoder` answers to `no-such-name` too",
    ),
    "engine greedy": (
        "@hookimpl\ndef hlo_engine(name): return print",
        "hooks",
        "trouble",
        "`hlo_engine` answers to `no-such-name` too",
    ),
    "bad name": (offering(name="'Joints!'"), "declaration", "trouble", "can not be a specialty's name"),
    "bad type": (offering(examples="{'patients': 'a string'}"), "declaration", "trouble", "malformed"),
    "no description": (offering(description="' '"), "declaration", "warning", "no description"),
    "twice": (
        "@hookimpl\ndef hlo_specialties(): return [specialty(), specialty()]",
        "declaration",
        "trouble",
        "`joints` is offered by this plugin too",
    ),
    "template syntax": (offering(template="'{{ question'"), "template", "trouble", "can not be rendered"),
    "template without question": (offering(template="'Hello.'"), "template", "trouble", "leaves the question out"),
    "template filters": (offering(template="'{{ question | upper }}'"), "template", "warning", "changes the question"),
    "template evaluates": (
        offering(template="'{{ question | replace(\"{{ 7*7 }}\", 7 * 7) }}'"),
        "template",
        "trouble",
        "in a question is evaluated",
    ),
    "template forges": (
        offering(template="'{{ question }}{% if \"INST\" in question %}</s>{% endif %}'"),
        "template",
        "trouble",
        "yields 1 special tokens",
    ),
    "template too long": (
        offering(template="'word ' * 300 + '{{ question }}'"),
        "template",
        "trouble",
        "template alone",
    ),
    "no room": (offering(sampling="Sampling(max_tokens=250)"), "template", "warning", "Answers will be cut"),
    "no adapter": (offering(adapter="Adapter('nowhere')"), "adapter", "trouble", "`nowhere` was not found"),
    "adapter escapes": (offering(adapter="Adapter('../..', __name__)"), "adapter", "trouble", "leads out of"),
    "no examples": (offering(examples="{}"), "examples", "trouble", "has none"),
    "few": (offering(examples="{'patients': EXAMPLES[:9]}"), "examples", "trouble", "has 9;"),
    "not many": (offering(examples="{'patients': EXAMPLES[:49]}"), "examples", "warning", "has 49;"),
    "no patients": (offering(examples="{'clinical': EXAMPLES}"), "examples", "warning", "no part `patients`"),
    "empty": (offering(examples="{'patients': (*EXAMPLES, ' ')}"), "examples", "trouble", "has 1 without a word"),
    "twice the same": (
        offering(examples="{'patients': EXAMPLES, 'clinical': (' KNEE  aches mornings',)}"),
        "examples",
        "warning",
        "has 1 that stand there twice",
    ),
    "nearly the same": (
        offering(examples="{'patients': (*EXAMPLES, 'knee aches mornings!', 'mornings knee aches')}"),
        "examples",
        "warning",
        "has 3 pairs that are nearly the same",
    ),
    "starters": (
        offering(examples="{'patients': (*EXAMPLES, 'is what I have something for sore joints?')}"),
        "examples",
        "warning",
        "still has 1 of the examples that `hlo plugins new` wrote",
    ),
    "too long": (
        offering(examples="{'patients': (*EXAMPLES, 'ankle ' * 700)}"),
        "examples",
        "warning",
        "has 1 with more than 4000 characters",
    ),
}


@pytest.mark.parametrize(("more", "topic", "state", "said"), BAD_CODE.values(), ids=BAD_CODE)
def test_bad_code(more: str, topic: str, state: str, said: str, project: Project, settings: Settings) -> None:
    """Each fault of a plugin's code is told under its topic, with a remedy, and nothing is raised."""
    found = look(project(more=more), settings)
    assert said in told(found, topic, state)
    assert all(one.remedy for one in found.findings if one.topic == topic and one.state == state)
    assert found.trouble or state == "warning"


BAD_METADATA: dict[str, tuple[str, str, str, str, str]] = {
    "name": ("hlo-joints", "joints-for-hlo", "metadata", "warning", "Call it `hlo-joints-for-hlo`"),
    "version": ('"1.2.3"', '"one"', "metadata", "trouble", "`one` is no version"),
    "dynamic": ('version = "1.2.3"', 'dynamic = ["version"]', "metadata", "warning", "Only a build decides version"),
    "summary": ('"Joints for HLO."', '""', "metadata", "warning", "no Summary"),
    "readme": ('readme = "README.md"', "", "metadata", "warning", "no readme"),
    "python": (">=3.11", ">=99", "metadata", "trouble", "asks for Python >=99"),
    "no python": ('requires-python = ">=3.11"', "", "metadata", "warning", "no Requires-Python"),
    "bad python": (">=3.11", "three", "metadata", "trouble", "no range of versions"),
    "no hlo": ('["hlo"]', "[]", "metadata", "warning", "does not require `hlo`"),
    "only a test's hlo": ('["hlo"]', "[\"hlo; extra == 'test'\"]", "metadata", "warning", "does not require `hlo`"),
    "another hlo": ('["hlo"]', '["hlo>=77"]', "metadata", "trouble", "requires `hlo>=77`"),
    "requirement": ('["hlo"]', '["hlo", "a b c"]', "metadata", "trouble", "`a b c` is no requirement"),
    "licence": ('license = "Apache-2.0"', "", "licence", "warning", "names no licence."),
    "old licence": ('"Apache-2.0"', '{ text = "Apache" }', "licence", "warning", "but for the old field License"),
    "bad licence": ("Apache-2.0", "Do what you like", "licence", "warning", "no SPDX licence expression"),
}


@pytest.mark.parametrize(("old", "new", "topic", "state", "said"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_bad_metadata(
    old: str, new: str, topic: str, state: str, said: str, project: Project, settings: Settings
) -> None:
    """Each fault of a package's metadata is told, and is the only one that is told."""
    assert old in PYPROJECT
    found = look(project(pyproject=PYPROJECT.replace(old, new)), settings)
    assert said in told(found, topic, state)
    assert sorted(worse(found)) == sorted([(topic, state), ("effect", "warning")])


BAD_ADAPTERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "another base": ({"config": {"base_model_name_or_path": "someone/other"}}, "trouble", "base model `other`"),
    "no base": ({"config": {"base_model_name_or_path": ""}}, "warning", "does not say which base model"),
    "no LoRA": ({"config": {"peft_type": "LOHA"}}, "trouble", "describes no LoRA"),
    "rank": ({"rank": 65}, "trouble", "rank 65 is above"),
    "layer": ({"tensors": {"base_model.model.x.lora_A.weight": torch.ones(4, 4)}}, "trouble", "does not have"),
    "name": ({"tensors": {"embedding": torch.ones(4, 4)}}, "trouble", "is no LoRA matrix"),
}


@pytest.mark.parametrize(("options", "state", "said"), BAD_ADAPTERS.values(), ids=BAD_ADAPTERS)
def test_bad_adapters(
    options: dict[str, Any], state: str, said: str, project: Project, make_adapter: MakeAdapter, settings: Settings
) -> None:
    """Each fault of an adapter is told; with one that can not be served, no engine is needed."""
    folder = project()
    make_adapter(folder / "src" / "hlo_joints" / "adapter", **options)
    found = look(folder, settings, engine=state == "trouble")
    assert said in told(found, "adapter", state)
    assert all(one.topic != "effect" or state == "warning" for one in found.findings)


def test_pickles(project: Project, settings: Settings) -> None:
    """A pickle beside the weights is warned of; in their place it is trouble."""
    folder = project()
    adapter = folder / "src" / "hlo_joints" / "adapter"
    (adapter / "training_args.bin").write_bytes(b"")
    assert "`training_args.bin` lies beside" in told(look(folder, settings), "adapter", "warning")
    (adapter / "adapter_model.safetensors").unlink()
    assert "the pickle `training_args.bin`" in told(look(folder, settings), "adapter", "trouble")


def test_cards(project: Project, settings: Settings) -> None:
    """The adapter's card must be there and name a licence in its front matter."""
    folder = project()
    card = folder / "src" / "hlo_joints" / "adapter" / "README.md"
    assert "adapter of `joints`: apache-2.0" in told(look(folder, settings), "licence", "ok")
    card.write_text(f"# Joints\n{CARD}", encoding="utf-8")
    assert "has no `license:`" in told(look(folder, settings), "licence", "warning")
    card.unlink()
    assert "is not there" in told(look(folder, settings), "licence", "warning")


def test_an_adapter_without_effect(project: Project, make_adapter: MakeAdapter, settings: Settings) -> None:
    """An adapter that is sound in form but changes nothing is found out by the engine."""
    folder = project()
    adapter = make_adapter(folder / "src" / "hlo_joints" / "adapter", kinds=("q_proj",))
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    tiny = {name: tensor * (1e-9 if ".lora_B." in name else 1) for name, tensor in weights.items()}
    save_file(tiny, adapter / "adapter_model.safetensors")
    found = look(folder, settings, engine=True)
    assert "changes nothing" in told(found, "effect", "trouble")
    assert worse(found) == [("effect", "trouble")]


def test_without_an_engine(project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no engine is installed, or none was asked for, the effect is told as not examined: no trouble."""
    folder = project()
    assert "no engine was to be started" in told(look(folder, settings), "effect", "warning")

    def nothing(*_: object) -> None:
        raise SettingsError("vLLM is not installed.", remedy="Install it.")

    monkeypatch.setattr(engines, "find", nothing)
    found = look(folder, settings, engine=True)
    assert "for want of an engine: vLLM is not installed" in told(found, "effect", "warning")
    assert not found.trouble


async def test_inside_an_event_loop(project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin can be examined from an asynchronous test too; the engine is closed in the end."""
    engine = EchoEngine()

    async def start(_: EngineOptions) -> EchoEngine:
        await asyncio.sleep(0)
        return engine

    monkeypatch.setattr(engines, "find", lambda *_: start)
    found = look(project(), settings, engine=True)
    assert "(echo 1)" in told(found, "effect", "ok")
    assert engine.closed


def test_the_size_of_a_package(project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than what PyPI takes is warned of, when the weights lie in the package, and not when they lie elsewhere."""
    monkeypatch.setattr(package, "PYPI_MIB", 0)
    folder = project()
    assert "PyPI takes 0" in told(look(folder, settings), "size", "warning")
    adapter = folder / "src" / "hlo_joints" / "adapter"
    settings.adapter_path.mkdir()
    adapter.rename(settings.adapter_path / "elsewhere")
    module = folder / "src" / "hlo_joints" / "__init__.py"
    module.write_text(
        f"{CODE}\n{offering(adapter=repr('x')).replace(repr('x'), 'Adapter(`elsewhere`)')}".replace("`", "'")
    )
    assert told(look(folder, settings), "size", "warning") == ""


def test_a_slow_hook(project: Project, settings: Settings) -> None:
    """A question hook that does not come back is given up after its time, and the other checks go on."""
    hurried = settings.model_copy(update={"question_timeout_s": 0.2})
    found = look(project(more=f"import time\n{hook('time.sleep(600)')}"), hurried)
    assert "took longer than 0.2 s (HLO_QUESTION_TIMEOUT_S) for 1 of" in told(found, "hooks", "trouble")
    assert told(found, "catchment", "ok")


def test_a_slow_hook_is_asked_no_more(project: Project, settings: Settings, tmp_path: Path) -> None:
    """A question hook that was given up gets no more questions once it comes back."""
    asked, going = tmp_path / "asked", tmp_path / "going"
    going.touch()
    before = set(threading.enumerate())
    body = (
        f"import pathlib, time\n    with open({str(asked)!r}, 'a') as file: file.write('x')\n"
        f"    while pathlib.Path({str(going)!r}).exists(): time.sleep(0.01)"
    )
    hurried = settings.model_copy(update={"question_timeout_s": 0.2})
    assert "took longer" in told(look(project(more=hook(body)), hurried), "hooks", "trouble")
    going.unlink()
    for thread in set(threading.enumerate()) - before:
        if thread.name == "hlo-conformance":
            thread.join(10)
    assert asked.read_text(encoding="utf-8") == "x"


def test_an_entry_point_inside_a_package(project: Project, settings: Settings) -> None:
    """An entry point may name a module as an attribute of its package; that module's hooks are examined."""
    folder = project(pyproject=PYPROJECT.replace('"hlo_joints"', '"hlo_joints:inner"'), code="from . import inner")
    (folder / "src" / "hlo_joints" / "inner.py").write_text(CODE.replace("__name__", "'hlo_joints'"), encoding="utf-8")
    found = look(folder, settings)
    assert "implements hlo_specialties" in told(found, "hooks", "ok")
    assert worse(found) == [("effect", "warning")]


def test_a_plugin_of_other_hooks(project: Project, settings: Settings) -> None:
    """A plugin without specialties is examined for what it has; what its hook says of questions is counted."""
    speaks = hook("return Screening(notice='x') if 'INST' in question.text else None")
    code = f"from hlo import hookimpl\nfrom hlo.records import Screening\n{speaks}"
    found = look(project(code=code), settings, engine=True, questions=[Asked("[INST]")])
    assert worse(found) == []
    said = "questions, `hlo_question` puts a notice before 2, pins 0 and refuses 0"
    assert f"of {len(PROBES) + 1} {said}" in told(found, "hooks", "ok")
    assert told(found, "declaration", "ok") == "It offers no specialty. "
    assert {one.topic for one in found.findings} == {"metadata", "hooks", "declaration", "licence"}
    assert found.audit is None


@pytest.mark.parametrize("member", ["hlo/more.py", "json.py", "numpy/more.py"])
def test_a_wheel_that_overwrites_others(member: str, wheel: Callable[..., Path], settings: Settings) -> None:
    """A wheel with modules that belong to another package, or to Python, is trouble."""
    assert "would be overwritten" not in repr(look(wheel(), settings).findings)
    found = look(wheel({member: ""}), settings)
    assert f"`{member.partition('/')[0].removesuffix('.py')}` would be overwritten" in told(
        found, "metadata", "trouble"
    )


def test_examples_that_are_shared(project: Project, plugins: Plugins, settings: Settings) -> None:
    """Examples that are nearly another specialty's are told, with the specialty."""
    plugins("bones", "bones", reference="bones", examples=("aches mornings knee", "heart attack"))
    shared = told(look(project(), settings), "examples", "warning")
    assert "shares 1 with `bones`" in shared
    assert "“knee aches mornings” and “aches mornings knee”" in shared


def test_a_name_that_is_taken(project: Project, plugins: Plugins, settings: Settings) -> None:
    """A specialty whose name another plugin has is trouble, and is not audited in that one's place."""
    plugins("bones", "joints", reference="bones")
    found = look(project(), settings)
    assert "`joints` is offered by an installed plugin" in told(found, "declaration", "trouble")
    assert found.audit is None


def test_a_rival_for_the_entry_point(project: Project, plugins: Plugins, settings: Settings) -> None:
    """An entry point's name that another package has is trouble; the plugin is examined all the same."""
    plugins("joints", "other", reference="other")
    found = look(project(), settings)
    assert "taken by the installed package `hlo-test-joints`" in told(found, "hooks", "trouble")
    assert "64 patients" in told(found, "examples", "ok")


@pytest.mark.parametrize(("max_moved", "state"), [(0.2, "ok"), (0.19, "trouble")])
def test_the_catchment(max_moved: float, state: str, project: Project, plugins: Plugins, settings: Settings) -> None:
    """A specialty that would lose more than the share that may move is trouble, and the share is told."""
    # By hand: the last one's cosine with each other of falls is 1/√8, and with `knee aches mornings` 3/√12.
    examples = ("fall frail", "fall slip", "fall trip", "fall stairs", "fall knee aches mornings")
    plugins("falls", "falls", reference="falls", examples=examples)
    found = look(project(), settings, max_moved=max_moved)
    assert "20.0%" in told(found, "catchment", state)
    assert found.trouble is (state == "trouble")
    assert found.audit is not None
    assert [one.question for one in found.audit.moved] == ["fall knee aches mornings"]


def test_examples_that_do_not_come_home(project: Project, plugins: Plugins, settings: Settings) -> None:
    """Fewer than 60 % of its own examples at home is a warning that says where they go."""
    plugins("knees", "knees", reference="knees", examples=tuple(EXAMPLES[:16]))
    more = offering(examples="{'patients': EXAMPLES[:16], 'bakery': ('bread oven flour',)}")
    home = told(look(project(more=more), settings), "catchment", "warning")
    assert "0 of 17 of its own examples come home; 16 to knees, 1 to out_of_scope" in home


def test_specialties_that_hlo_leaves_out(project: Project, plugins: Plugins, settings: Settings) -> None:
    """HLO_PLUGINS decides who is installed, for the audit too; it needs not name what is examined."""
    plugins("falls", "falls", reference="falls", examples=("fall", "frail", "knee aches"))
    found = look(project(), settings.model_copy(update={"plugins": "-falls"}))
    assert "No other specialty is installed" in told(found, "catchment", "ok")


def test_the_encoder_s_window(project: Project, settings: Settings) -> None:
    """An example whose end the encoder does not read is warned of."""

    class Short(HashingEncoder):
        def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
            return super().encode([" ".join(one.split()[:30]) for one in questions])

    folder = project(more=offering(examples="{'patients': (*EXAMPLES, 'ankle and ' * 20 + 'toe')}"))
    assert "has 1 that are longer than the encoder's window" in told(
        look(folder, settings, encoder=Short()), "examples", "warning"
    )
    assert worse(look(folder, settings)) == [("effect", "warning")]


@pytest.mark.parametrize(
    ("what", "broken"),
    [("find_model", HLOError("No model.", remedy="Get one.")), ("load_encoder", EncoderError("No."))],
)
def test_what_is_missing_is_told_once(
    what: str, broken: HLOError, project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing model or encoder is trouble once, is looked for once, and the other checks go on."""
    calls = []

    def fail(*_: object) -> None:
        calls.append(what)
        raise broken

    monkeypatch.setattr(assemble, what, fail)
    found = look(project(), settings, encoder=None)
    assert len(calls) == 1
    assert sum(one.state == "trouble" for one in found.findings) == 1
    assert any("Not examined, because of what was told above" in one.text for one in found.findings)
    assert "Apache-2.0" in told(found, "licence", "ok")


def test_a_check_that_breaks_is_told(project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a check raises is a finding without the error's words, which may be a patient's."""

    def broken(*_: object) -> tuple[()]:
        raise ValueError("my secret pain")

    monkeypatch.setattr(ChatTokenizer, "chat", broken)
    found = look(project(), settings)
    assert "ValueError in test_conformance.py" in told(found, "template", "trouble")
    assert "secret" not in repr(found)
    assert told(found, "catchment", "ok")


def test_contradicting_settings(project: Project, settings: Settings) -> None:
    """Settings that contradict themselves are no plugin's fault, and are raised."""
    with pytest.raises(SettingsError):
        look(project(), settings.model_copy(update={"plugins": "a,-a"}))


def test_a_written_package_among_all_that_ship(
    tmp_path: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `hlo plugins new` writes conforms, with the real encoder and engine, but for what is to be replaced."""
    assert clean_environment
    monkeypatch.setattr(all_plugins, "installed", INSTALLED)
    written = scaffold.write("rheumatology", None, tmp_path)
    settings = Settings(cache_dir=cache_dir(tmp_path), device="cpu", engine="transformers")
    with find(written.folder) as subject:
        found = examine(subject, settings)
        assert len(subject.others()) >= 11
    assert not found.trouble, [one for one in found.findings if one.state == "trouble"]
    assert "still has 14 of the examples" in told(found, "examples", "warning")
    assert "`rheumatology`" in told(found, "effect", "ok")
    assert found.audit is not None
    assert found.audit.questions > 1000
    assert sum(map(sum, found.audit.confusion.counts)) == found.audit.questions


class TestFixture:
    """The fixtures for authors, as their tests use them."""

    @pytest.fixture
    def hlo_settings(self, settings: Settings) -> Settings:
        """An author's own settings."""
        return settings

    @pytest.fixture
    def hlo_encoder(self) -> HashingEncoder:
        """A quick encoder."""
        return HashingEncoder()

    @pytest.fixture
    def conformance(self, hlo_settings: Settings, request: pytest.FixtureRequest) -> Conformance:
        """The fixture that ships, in this test's scope."""
        made: Conformance = conformance_fixture.__wrapped__(hlo_settings, request)  # type: ignore[attr-defined]
        return made

    def test_a_good_plugin(self, project: Project, conformance: Conformance, monkeypatch: pytest.MonkeyPatch) -> None:
        """The findings come back, and a second call with the same options examines nothing anew."""
        folder = project()
        found = conformance(folder, engine=False)
        assert all(isinstance(one, Finding) for one in found)
        monkeypatch.setattr("hlo.testing.fixtures.examine", None)
        assert conformance(folder, engine=False) is found

    def test_a_bad_plugin(self, project: Project, conformance: Conformance) -> None:
        """Trouble is an AssertionError that lists every trouble and its remedy, and no warning."""
        folder = project(more=offering(template="'Hello.'", examples="{}", description="''"))
        with pytest.raises(AssertionError) as caught:
            conformance(folder, engine=False)
        said = str(caught.value)
        assert "leaves the question out" in said
        assert "Put `{{ question }}` into it." in said
        assert "has none, so no question goes there" in said
        assert "no description" not in said


CONFTEST = """\
import pytest
from hlo.settings import Settings
from hlo.testing import HashingEncoder

pytest_plugins = ["hlo.testing.fixtures"]


@pytest.fixture(scope="session")
def hlo_settings():
    return Settings(model={model!r}, cache_dir={cache!r}, device="cpu", background=False, plugins="joints")


@pytest.fixture(scope="session")
def hlo_encoder():
    return HashingEncoder()
"""


def test_in_an_author_s_own_tests(project: Project, settings: Settings, tmp_path: Path) -> None:
    """An author's test with `pytest_plugins` passes for a good plugin, and fails with the trouble of a bad one."""
    good, bad, tests = project(), tmp_path / "bad", tmp_path / "tests"
    shutil.copytree(good, bad)
    (bad / "src" / "hlo_joints" / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    tests.mkdir()
    conftest = CONFTEST.format(model=settings.model, cache=str(settings.cache_dir))
    (tests / "conftest.py").write_text(conftest, encoding="utf-8")
    (tests / "test_joints.py").write_text(
        f"def test_good(conformance):\n    assert conformance({str(good)!r}, engine=False, max_moved=1.0)\n\n\n"
        f"def test_bad(conformance):\n    assert conformance({str(bad)!r}, engine=False, max_moved=1.0)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tests)
    assert (done.returncode, "1 failed, 1 passed" in done.stdout) == (1, True), done.stdout + done.stderr
    assert "describes no LoRA" in done.stdout


def test_nothing_stays(project: Project, settings: Settings) -> None:
    """Nothing of an examined plugin stays in this process."""
    path, modules = list(sys.path), set(sys.modules)
    look(project(), settings)
    assert sys.path == path
    assert [name for name in set(sys.modules) - modules if name.partition(".")[0] == "hlo_joints"] == []
