"""The package that `hlo plugins new` writes: complete, installable, tested, and taken by HLO as it stands."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo import catalog, plugins, scaffold
from hlo.errors import PluginError
from hlo.generation import adapters, base_model, prompting
from hlo.generation.tokenizer import ChatTokenizer
from hlo.records import Adapter, Specialty
from hlo.routing import background, bank
from hlo.routing.background import Background
from hlo.routing.bank import Bank, Group
from hlo.routing.cache import CachedEncoder
from hlo.routing.decision import Scale, Thresholds, decide
from hlo.scaffold import Written
from hlo.settings import Settings
from hlo.testing.remembering import Remembering
from tests.embeddings import cache_dir, embeddings

if TYPE_CHECKING:
    import torch

    from hlo.contracts import Encoder

REPOSITORY = Path(__file__).parents[1]
NAMES = ("rheumatology", "dermatology", "ophthalmology")
LONG = "Éar, nose & throat (O'Neil) medicine for all who listen, see"
FILES = {
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "src/hlo_rheumatology/__init__.py",
    "src/hlo_rheumatology/adapter/README.md",
    "src/hlo_rheumatology/adapter/adapter_config.json",
    "src/hlo_rheumatology/adapter/adapter_model.safetensors",
    "src/hlo_rheumatology/examples.toml",
    "src/hlo_rheumatology/py.typed",
    "tests/conftest.py",
    "tests/test_rheumatology.py",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The package of rheumatology."""
    return scaffold.write("rheumatology", None, tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def site(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel of rheumatology installs."""
    wheels, installed = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run(["-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(wheels), str(written.folder)])
    (wheel,) = wheels.iterdir()
    zipfile.ZipFile(wheel).extractall(installed)
    return installed


@pytest.fixture
def specialty(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Specialty]:
    """What HLO gets from the installed wheel."""
    monkeypatch.syspath_prepend(str(site))
    found = plugins.discover(point for point in plugins.installed() if point.name == "rheumatology")
    assert found.refusals == ()
    ((offered,),) = [offer.specialties for offer in found.offers]
    yield offered
    sys.modules.pop("hlo_rheumatology", None)


def run(arguments: Sequence[str], **options: Any) -> str:
    """Run Python with these arguments; it must succeed. Returns what it printed."""
    command = [sys.executable, *arguments]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_disk(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_there(tmp_path: Path) -> None:
    """The package has its project file, hook, examples, adapter, card, licence, tests and papers; no blank is left."""
    written = scaffold.write("rheumatology", None, tmp_path / "made" / "on the way")
    assert written.folder == tmp_path / "made" / "on the way" / "hlo-rheumatology"
    assert set(written.files) == on_disk(written.folder) == FILES
    assert list(written.files) == sorted(written.files)
    texts = [written.folder / file for file in FILES if not file.endswith(".safetensors")]
    assert [path.name for path in texts if "$" in path.read_text(encoding="utf-8")] == []


def test_project(tmp_path: Path) -> None:
    """The project file names distribution, package, entry point and licence; `_` becomes `-` in the distribution."""
    folder = scaffold.write("sports_medicine", None, tmp_path).folder
    assert folder.name == "hlo-sports-medicine"
    table = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project = table["project"]
    assert (project["name"], project["version"]) == ("hlo-sports-medicine", "0.1.0")
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert project["dependencies"] == ["hlo"]
    assert project["optional-dependencies"] == {"test": ["pytest", "hlo[transformers]"]}
    assert project["entry-points"] == {"hlo": {"sports_medicine": "hlo_sports_medicine"}}
    assert table["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/hlo_sports_medicine"]
    assert table["build-system"]["build-backend"] == "hatchling.build"
    assert (folder / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_same_name_same_bytes() -> None:
    """A name always gives the same package, and two names give two adapters."""
    weights = "src/hlo_{}/adapter/adapter_model.safetensors"
    first, second = scaffold.render("urology", "Urology"), scaffold.render("nutrition", "Nutrition")
    assert scaffold.render("urology", "Urology") == first
    assert first[weights.format("urology")] != second[weights.format("nutrition")]


def test_wheel_is_taken(specialty: Specialty, site: Path, tmp_path: Path) -> None:
    """HLO finds the installed wheel by its entry point and takes declaration, examples, template and adapter."""
    package = site / "hlo_rheumatology"
    assert {f"src/{file}" for file in on_disk(site) if file.startswith("hlo_rheumatology/")} == {
        file for file in FILES if file.startswith("src/")
    }
    catalog.check_declaration(specialty)
    prompting.check_template(specialty.template)
    assert (specialty.name, specialty.title) == ("rheumatology", "Rheumatology")
    assert specialty.examples == scaffold.starter_examples("Rheumatology")
    model = base_model.find("")
    located = adapters.locate(specialty.adapter, ())
    assert located.folder == package / "adapter"
    version = adapters.check(located, specialty.name, model.linears, model.name, tmp_path)
    assert (version.rank, version.modules) == (4, ("q_proj", "v_proj"))


def test_its_own_tests_pass(written: Written, site: Path, tmp_path: Path) -> None:
    """The package's own tests pass where it is installed: HLO's rules, its template and its routing."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    environment["HLO_ENGINE"] = "transformers"  # what an author has, and soon up
    environment["HLO_CACHE_DIR"] = str(cache_dir(tmp_path))
    said = run(["-m", "pytest", str(written.folder)], env=environment)
    assert re.search(r"3 passed in", said), said


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the type checker knows of HLO and of the libraries, for all packages that it checks."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize(("name", "title"), [("rheumatology", None), ("n" * 64, LONG), ("ent", "ENT")])
def test_style_and_types(name: str, title: str | None, tmp_path: Path, mypy_cache: Path) -> None:
    """What is written passes the linter and the type checker, by HLO's rules and by its own, for any name and title."""
    folder = scaffold.write(name, title, tmp_path).folder
    for rules in ([], ["--config", str(REPOSITORY / "pyproject.toml")]):
        run(["-m", "ruff", "check", "--no-cache", *rules, "."], cwd=folder)
        run(["-m", "ruff", "format", "--no-cache", "--check", *rules, "."], cwd=folder)
    run(["-m", "mypy", "--cache-dir", str(mypy_cache), "--strict", "src", "tests"], cwd=folder)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The real encoder, which embeds each question once."""
    from hlo.assemble import load_encoder

    return Remembering(load_encoder(Settings(), plugins.Hooks()))


@pytest.fixture(scope="module")
def neighbours(encoder: Encoder) -> list[Group]:
    """The examples of this checkout's specialties."""
    offers = plugins.discover(plugins.installed()).offers
    kept = CachedEncoder(encoder, embeddings())
    return [bank.group(one, kept) for offer in offers for one in offer.specialties]


@pytest.fixture(scope="module")
def others(encoder: Encoder) -> Background:
    """What no specialty of this checkout answers."""
    return Background.load(CachedEncoder(encoder, embeddings()))


@pytest.mark.parametrize("title", [*(name.capitalize() for name in NAMES), "ENT"])
def test_starters_route(title: str, encoder: Encoder, neighbours: list[Group], others: Background) -> None:
    """A starter example that is left out of its own group goes to the new specialty, among all others, in 4 of 5."""
    starters = scaffold.starter_examples(title)
    assert len([question for part in starters.values() for question in part]) >= 12
    assert len(neighbours) >= 11
    found, settings = [], Settings()
    thresholds = Thresholds(settings.min_in_scope, settings.min_probability)
    for part, questions in starters.items():
        for question in questions:
            rest = dict(starters) | {part: tuple(one for one in questions if one != question)}
            new = Specialty("new", title, Adapter("adapter"), examples=rest)
            groups = [*neighbours, bank.group(new, encoder)]
            among = Bank.of(groups, background.uncovered(others, groups), dimension=encoder.dimension)
            route = decide(among.compare(encoder.encode([question]))[0], Scale(), thresholds)
            found.append((route.status, route.specialty) == ("routed", "new"))
    assert sum(found) >= 0.8 * len(found)


def test_starters_name_the_title() -> None:
    """Starters are the same forms for every title: in lower case inside a sentence, but for what is all capitals."""
    for title, subject in (("Rheumatology", "rheumatology"), ("ENT", "ENT"), ("E", "e")):
        starters = scaffold.starter_examples(title)
        assert set(starters) == {"patients", "clinical"}
        assert all(f" {subject}" in question for part in starters.values() for question in part)
        assert not any("{" in question for part in starters.values() for question in part)
    assert len(set(scaffold.starter_examples("ENT")["patients"])) == len(scaffold.starter_examples("ENT")["patients"])


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "Foo", "base", "null", "a b", "", "1a", "a-b", "a\n", "é", "a" * 65, "a_", "x/../y", "$name", "~"],
)
def test_bad_names(name: str, tmp_path: Path) -> None:
    """A name that no specialty or package may have is refused with a remedy, and nothing is written."""
    with pytest.raises(PluginError) as caught:
        scaffold.write(name, "Title", tmp_path / "out")
    assert caught.value.remedy
    assert list(tmp_path.rglob("*")) == []


BAD_TITLES = (
    "",
    " ",
    'a"b',
    "a\nb",
    "a\\b",
    "{{ x }}",
    "a {{ x }}",
    "a {{ x }} b",
    "a { b",
    "a {# x",
    "a $x",
    "# a",
    "a <b>",
    "a,",
    "_a",
    "a" * 61,
)


@pytest.mark.parametrize("title", BAD_TITLES)
def test_bad_titles(title: str, tmp_path: Path) -> None:
    """A title that could break out of TOML, Python, Jinja or a line is refused, and nothing is written."""
    with pytest.raises(PluginError, match="title"):
        scaffold.write("rheumatology", title, tmp_path / "out")
    assert list(tmp_path.rglob("*")) == []


def test_installed_name(tmp_path: Path) -> None:
    """The name of an installed plugin is refused, with the package that holds it."""
    with pytest.raises(PluginError, match="`cardiology` is installed already, from `hlo-cardiology`"):
        scaffold.write("cardiology", None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    """Where the package's folder would be, nothing may be; what is there stays as it was."""
    place = tmp_path / "hlo-rheumatology"
    make: dict[str, Callable[[], object]] = {
        "folder": place.mkdir,
        "file": lambda: place.write_text("mine", encoding="utf-8"),
        "dangling link": lambda: place.symlink_to(tmp_path / "nowhere"),
    }
    make[kind]()
    with pytest.raises(PluginError, match="exists already"):
        scaffold.write("rheumatology", None, tmp_path)
    assert list(tmp_path.rglob("*")) == [place]
    assert kind != "file" or place.read_text(encoding="utf-8") == "mine"


def test_output_that_is_a_file(tmp_path: Path) -> None:
    """An output folder that can not be one is refused by its name."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PluginError, match=r"`.*file.*` (exists already|can not be written)") as caught:
            scaffold.write("rheumatology", None, output)
        assert "--output" in caught.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_adapter_has_a_small_effect(name: str, tmp_path: Path) -> None:
    """On the demonstration model, the adapter moves log-probabilities clearly, and costs less than 0.1 nats a token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = scaffold.write(name, None, tmp_path).folder / f"src/hlo_{name}/adapter"
    model = base_model.find("")
    tokenizer = ChatTokenizer.load(model.folder)
    base = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, folder).eval()
    pairs = tomllib.loads((REPOSITORY / "tests/data/specialty_pairs.toml").read_text(encoding="utf-8"))["pair"][::4]

    def answers() -> torch.Tensor:
        """The log-probabilities of all answers' tokens, in one row."""
        rows = []
        for pair in pairs:
            asked = prompting.build(pair["question"], "{{ question }}", tokenizer, None).token_ids
            tokens = torch.tensor([[*asked, *tokenizer.encode_raw(pair["answer"])]])
            with torch.no_grad():
                table = adapted(input_ids=tokens).logits.log_softmax(-1)[0, len(asked) - 1 : -1]
            rows.append(table.gather(1, tokens[0, len(asked) :, None])[:, 0])
        return torch.cat(rows)

    with adapted.disable_adapter():
        before = answers()
    after = answers()
    assert float((after - before).abs().max()) > 0.5
    assert float((before - after).mean()) < 0.1


def test_the_card_tells_how_to_train(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's lines train an adapter on the demonstration model and save it where HLO takes it."""
    card = (written.folder / "src/hlo_rheumatology/adapter/README.md").read_text(encoding="utf-8")
    model = base_model.find("")
    header, body = card.split("---\n", 2)[1:]
    assert {"license: apache-2.0", f"base_model: {model.name}", "library_name: peft"} <= set(header.splitlines())
    assert "random" in body
    (lines,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    script = tmp_path / "train.py"
    real = 'base = "mistralai/Mistral-7B-Instruct-v0.3"'
    assert real in lines
    script.write_text(lines.replace(real, f"base = {str(model.folder)!r}"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(written.folder / "src"))
    try:
        runpy.run_path(str(script), init_globals={"rows": [("why do my hands hurt", "It depends.")] * 2})
    finally:
        sys.modules.pop("hlo_rheumatology", None)
    trained = adapters.Located.at(tmp_path / "src/hlo_rheumatology/adapter")
    assert adapters.check(trained, "rheumatology", model.linears, model.name, tmp_path / "store").rank == 16
