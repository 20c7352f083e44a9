"""Plugins: found by entry point, each isolated from the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType

import pytest

from hlo import hookspecs, plugins
from hlo.errors import PluginError, SettingsError
from hlo.plugins import Hooks
from hlo.records import Offer, Question, Refusal, Screening

GOOD = """
from hlo import Adapter, Specialty, hookimpl

@hookimpl
def hlo_specialties():
    return [Specialty(name="{name}", title="T", adapter=Adapter("{name}"))]
"""

Write = Callable[[str, str], EntryPoint]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a plugin's module and return its entry point, named without the module's prefix."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    written = []

    def make(name: str, source: str) -> EntryPoint:
        module = f"hlo_test_{name}"
        written.append(module)
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return EntryPoint(name, module, plugins.GROUP)

    yield make
    for module in written:
        sys.modules.pop(module, None)


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try no plugin in a process of its own: `test_trial.py` is about that."""
    monkeypatch.setattr("hlo.plugins.trial.run", lambda modules, timeout_s: {})


def collect(points: list[EntryPoint]) -> tuple[tuple[Offer, ...], tuple[Refusal, ...]]:
    """What plugins offer, and which are refused."""
    found = plugins.discover(points)
    return found.offers, found.refusals


def collect_with_good(bad: EntryPoint, write: Write) -> Refusal:
    """Collect a bad plugin between two good ones; the good ones are served, and the bad one's refusal returned."""
    first, last = write("first", GOOD.format(name="first")), write("last", GOOD.format(name="last"))
    offers, refusals = collect([first, bad, last])
    assert [offer.specialties[0].name for offer in offers] == ["first", "last"]
    assert len(refusals) == 1
    assert refusals[0].plugin == bad.name
    assert refusals[0].specialty is None
    assert refusals[0].remedy
    return refusals[0]


def test_hlo_specialties(write: Write) -> None:
    """`hlo_specialties` offers the list that it returns, under its plugin's name."""
    offers, refusals = collect([write("good", GOOD.format(name="cardiology"))])
    assert refusals == ()
    assert [(offer.plugin, [one.name for one in offer.specialties]) for offer in offers] == [("good", ["cardiology"])]


def hooks(source: str, write: Write, name: str = "good") -> Hooks:
    """The hooks of one plugin."""
    found = plugins.discover([write(name, f"from hlo import Screening, hookimpl\n@hookimpl\n{source}\n")])
    assert found.refusals == ()
    return found.hooks


ENCODER = """
class Encoder:
    name = fingerprint = "own"
    dimension = 1
    def encode(self, questions): ...
"""


def test_hlo_encoder(write: Write) -> None:
    """`hlo_encoder` is asked with the name that the operator gave, and None says that it is another's."""
    found = hooks(f"def hlo_encoder(name):\n    return Encoder() if name == 'own' else None\n{ENCODER}", write)
    encoder = found.find_encoder("own")
    assert encoder is not None
    assert encoder.fingerprint == "own"
    assert found.find_encoder("other") is None


def test_hlo_engine(write: Write) -> None:
    """`hlo_engine` is asked with the name that the operator gave, and None says that it is another's."""
    found = hooks("def hlo_engine(name):\n    return start if name == 'own' else None\nasync def start(o): ...", write)
    start = found.find_engine("own")
    assert start is not None
    assert start.__name__ == "start"
    assert found.find_engine("other") is None


@pytest.mark.parametrize("hook", ["encoder", "engine"])
@pytest.mark.parametrize(("body", "said"), [("return 1", "returned int"), ("raise ValueError('no')", "ValueError: no")])
def test_an_offer_that_can_not_be_used_is_an_error(hook: str, body: str, said: str, write: Write) -> None:
    """An encoder or engine hook that raises, or returns something else, is an error that names plugin and hook."""
    found = hooks(f"def hlo_{hook}(name):\n    {body}\n", write)
    with pytest.raises(PluginError, match=said) as caught:
        getattr(found, f"find_{hook}")("own")
    assert f"`hlo_{hook}` of the plugin `good`" in caught.value.message


def test_hlo_question(write: Write) -> None:
    """`hlo_question` is called with the question, and what it says is a screening."""
    found = hooks("def hlo_question(question):\n    return Screening(notice=question.text.upper())", write)
    ((hook),) = found.question
    assert (hook.plugin, hook(question=Question("why?"))) == ("good", Screening(notice="WHY?"))


def test_hlo_answer(write: Write) -> None:
    """`hlo_answer` is called with those of question and answer that it takes."""
    source = "def hlo_answer(answer):\n    seen.append(answer)\nseen = []"
    (hook,) = hooks(source, write).answer
    hook(question=Question("why?"), answer="because")
    assert sys.modules["hlo_test_good"].seen == ["because"]


def test_hooks_come_in_the_order_of_their_plugins_names(write: Write) -> None:
    """Hooks are kept by the names of their plugins, whatever the order in which these were found."""
    source = "from hlo import hookimpl\n@hookimpl\ndef hlo_answer(): ...\n"
    found = plugins.discover([write(name, source) for name in ("b", "c", "a")])
    assert [hook.plugin for hook in found.hooks.answer] == ["a", "b", "c"]


def test_a_refused_plugin_has_no_hooks(write: Write) -> None:
    """The hooks of a plugin that is refused for its specialties are not called either."""
    source = "from hlo import hookimpl\n@hookimpl\ndef hlo_answer(): ...\n@hookimpl\ndef hlo_specialties(): 1 / 0\n"
    found = plugins.discover([write("bad", source)])
    assert (found.hooks.answer, [refusal.plugin for refusal in found.refusals]) == ((), ["bad"])


@pytest.mark.parametrize(
    ("chosen", "kept", "off", "unknown"),
    [
        ("", "abc", "", ""),
        (" , ", "abc", "", ""),
        ("a", "a", "bc", ""),
        ("c, a", "ac", "b", ""),
        ("-b", "ac", "b", ""),
        ("a,b,-c", "ab", "c", ""),
        ("a,x", "a", "bc", "x"),
        ("-x", "abc", "", "x"),
    ],
)
def test_the_operator_chooses(chosen: str, kept: str, off: str, unknown: str) -> None:
    """HLO_PLUGINS allows by name, denies by name with `-`, and tells of names that nothing installed bears."""
    points = [EntryPoint(name, f"module_{name}", plugins.GROUP) for name in "abc"]
    found = plugins.choose(points, chosen)
    assert ([point.name for point in found[0]], list(found[1]), list(found[2])) == (
        list(kept),
        list(off),
        list(unknown),
    )


@pytest.mark.parametrize("chosen", ["a,-a", "-", "b, - "])
def test_a_choice_that_contradicts_itself_is_refused(chosen: str) -> None:
    """HLO_PLUGINS with a name both allowed and denied, or with a `-` alone, is refused."""
    with pytest.raises(SettingsError, match="HLO_PLUGINS="):
        plugins.choose([EntryPoint("a", "module_a", plugins.GROUP)], chosen)


def test_a_plugin_that_is_left_out_is_not_imported(write: Write) -> None:
    """What HLO_PLUGINS leaves out is told, and never imported; a name that is not installed is told as a refusal."""
    bad, good = write("bad", "raise SystemExit"), write("good", GOOD.format(name="good"))
    found = plugins.discover([bad, good], chosen="-bad,-ghost")
    assert (found.off, [offer.plugin for offer in found.offers]) == (("bad",), ["good"])
    assert "hlo_test_bad" not in sys.modules
    assert [(one.plugin, "no plugin of that name is installed" in one.reason) for one in found.refusals] == [
        ("ghost", True)
    ]


def test_a_fresh_discovery_imports_anew(write: Write) -> None:
    """A plugin that was upgraded says what its new version says, when it is discovered afresh, and only then."""
    point = write("good", GOOD.format(name="one"))
    collect([point])
    write("good", GOOD.format(name="another"))
    assert collect([point])[0][0].specialties[0].name == "one"
    assert plugins.discover([point], fresh=True).offers[0].specialties[0].name == "another"


@pytest.mark.parametrize("value", ["hlo-joints", "", "a b", "1 / 0"])
def test_an_entry_point_that_can_be_no_module_is_isolated(value: str, write: Write) -> None:
    """An entry point whose value is no name of a module, nor of an object in one, is refused, alone."""
    refusal = collect_with_good(EntryPoint("bad", value, plugins.GROUP), write)
    assert f"names `{value}`, which can be no module" in refusal.reason


def test_what_failed_in_the_trial_is_refused_and_not_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that hung or crashed when it was tried is refused with what happened, and never imported here."""
    monkeypatch.setattr("hlo.plugins.trial.run", lambda modules, timeout_s: {1: "did not come back within 20 s"})
    refusal = collect_with_good(write("bad", "raise SystemExit"), write)
    assert "`hlo_test_bad` did not come back within 20 s" in refusal.reason
    assert "HLO_PLUGIN_TIMEOUT_S" in refusal.remedy


@pytest.mark.parametrize(
    ("told", "origin"),
    [
        (None, ""),
        ('{"url": "file:///x", "dir_info": {"editable": true}}', "editable file:///x"),
        ('{"url": "file:///x.whl", "archive_info": {}}', "file:///x.whl"),
        ('{"url": "https://h/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', "git+https://h/x@abc"),
        ('{"url": "https://h/x", "vcs_info": {}}', "unreadable direct_url.json"),
        ("[]", "unreadable direct_url.json"),
        ("{", "unreadable direct_url.json"),
    ],
)
def test_an_offer_says_where_its_package_came_from(
    told: str | None, origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """A package's origin is what its installer wrote down (PEP 610)."""
    write("found", GOOD.format(name="found"))
    info = tmp_path / "hlo_test_found-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hlo-test-found\nVersion: 2.5\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[hlo]\nfound = hlo_test_found\n", encoding="utf-8")
    if told is not None:
        (info / "direct_url.json").write_text(told, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (point,) = [point for point in plugins.installed() if point.name == "found"]
    assert plugins.discover([point]).offers[0].origin == origin


def test_every_hook_has_a_test() -> None:
    """Every hook in `hlo.hookspecs` has a test here that bears its name."""
    hooks = [name for name in vars(hookspecs) if name.startswith("hlo_")]
    assert hooks
    assert [hook for hook in hooks if f"test_{hook}" not in globals()] == []


def test_every_hook_says_when_it_is_called_and_what_an_error_does() -> None:
    """Every hook's docstring says when it is called and what happens when it raises."""
    for name, hook in vars(hookspecs).items():
        if name.startswith("hlo_"):
            assert "Called" in (hook.__doc__ or ""), name
            assert "raises" in (hook.__doc__ or ""), name


@pytest.mark.parametrize("hooks", ["", "def helper():\n    pass\n", "hlo_version = '1'\n"])
def test_a_plugin_without_hooks_offers_nothing(hooks: str, write: Write) -> None:
    """A plugin that implements no hook offers nothing, and that is no error."""
    assert collect([write("empty", hooks)]) == ((Offer("empty", "hlo_test_empty", "", ()),), ())


def test_an_empty_list_offers_nothing(write: Write) -> None:
    """A hook that returns an empty list offers nothing, and that is no error."""
    source = "from hlo import hookimpl\n@hookimpl\ndef hlo_specialties():\n    return []\n"
    offers, refusals = collect([write("empty", source)])
    assert (offers[0].specialties, refusals) == ((), ())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
    ],
)
def test_import_failure_is_isolated(source: str, said: str, write: Write) -> None:
    """A plugin whose import raises, or tries to end the process, is refused with the error's type, alone."""
    refusal = collect_with_good(write("bad", source), write)
    assert "`hlo_test_bad`" in refusal.reason
    assert said in refusal.reason


def test_a_module_that_is_not_there_is_isolated(write: Write) -> None:
    """An entry point whose module does not exist is refused, alone."""
    refusal = collect_with_good(EntryPoint("bad", "hlo_test_nowhere", plugins.GROUP), write)
    assert "`hlo_test_nowhere`" in refusal.reason


def test_an_attribute_that_is_not_there_is_isolated(write: Write) -> None:
    """An entry point whose object does not exist in its module is refused, alone."""
    write("bad", "")
    refusal = collect_with_good(EntryPoint("bad", "hlo_test_bad:plugin", plugins.GROUP), write)
    assert "AttributeError" in refusal.reason


@pytest.mark.parametrize("value", ["hlo_test_bad:NUMBER", "hlo_test_bad:TEXT", "hlo_test_bad:NOTHING"])
def test_an_entry_point_that_names_no_module_is_isolated(value: str, write: Write) -> None:
    """An entry point that names something else than a module or an object with hooks is refused, alone."""
    write("bad", "NUMBER = 1\nTEXT = 'x'\nNOTHING = None\n")
    collect_with_good(EntryPoint("bad", value, plugins.GROUP), write)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no examples')", "ValueError: no examples"),
        ("raise SystemExit(1)", "SystemExit"),
        ("return None", "it returned NoneType"),
        ("return Specialty('a', 'A', Adapter('a'))", "it returned Specialty"),
        ("return ()", "it returned tuple"),
        ("return ['cardiology']", "a list with str"),
        ("return [Specialty('a', 'A', Adapter('a')), None]", "a list with NoneType"),
        ("return [Specialty]", "a list with "),
        ("yield Specialty('a', 'A', Adapter('a'))", "it returned generator"),
    ],
)
def test_a_failing_hook_is_isolated(body: str, said: str, write: Write) -> None:
    """A hook that raises, or returns anything but a list of specialties, has its plugin refused, alone."""
    source = f"from hlo import Adapter, Specialty, hookimpl\n@hookimpl\ndef hlo_specialties():\n    {body}\n"
    refusal = collect_with_good(write("bad", source), write)
    assert "`hlo_specialties`" in refusal.reason
    assert said in refusal.reason


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("@hookimpl\ndef hlo_specialities():\n    return []\n", "`hlo_test_bad.hlo_specialities` is not a hook"),
        ("def hlo_specialties():\n    return []\n", "`hlo_test_bad.hlo_specialties` is not marked"),
        ("@hookimpl\nasync def hlo_specialties():\n    return []\n", "is asynchronous"),
        ("@hookimpl\nasync def hlo_specialties():\n    yield 1\n", "is asynchronous"),
        ("@hookimpl\ndef hlo_specialties(engine):\n    return []\n", "does not fit its specification"),
    ],
)
def test_a_hook_that_could_never_work_is_refused(source: str, said: str, write: Write) -> None:
    """A misspelt, unmarked, asynchronous or ill-fitting hook has its plugin refused with the hook's name, alone."""
    refusal = collect_with_good(write("bad", f"from hlo import hookimpl\n{source}"), write)
    assert said in refusal.reason


def test_a_name_that_is_taken_is_refused(write: Write) -> None:
    """Of two entry points of one name, the first serves and the second is refused."""
    first = write("twice", GOOD.format(name="one"))
    second = EntryPoint("twice", write("other", GOOD.format(name="two")).value, plugins.GROUP)
    offers, refusals = collect([first, second])
    assert [offer.specialties[0].name for offer in offers] == ["one"]
    assert "`twice` is taken twice" in refusals[0].reason


def test_one_module_under_two_names_is_isolated(write: Write) -> None:
    """A module that two entry points name serves once, and the second entry point is refused."""
    first = write("first", GOOD.format(name="one"))
    second = EntryPoint("second", first.value, plugins.GROUP)
    offers, refusals = collect([first, second, write("last", GOOD.format(name="last"))])
    assert [offer.plugin for offer in offers] == ["first", "last"]
    assert [refusal.plugin for refusal in refusals] == ["second"]


def test_installed_reads_metadata_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package's entry point is found with its distribution, and its module is not imported for that."""
    info = tmp_path / "hlo_test_found-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hlo-test-found\nVersion: 2.5\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[hlo]\nfound = hlo_test_found\n", encoding="utf-8")
    (tmp_path / "hlo_test_found.py").write_text(GOOD.format(name="found"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (point,) = [point for point in plugins.installed() if point.name == "found"]
    assert "hlo_test_found" not in sys.modules
    (offer,), refusals = collect([point])
    del sys.modules["hlo_test_found"]
    assert (offer.distribution, offer.version, refusals) == ("hlo-test-found", "2.5", ())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package `hlo_test_package` without data."""
    folder = tmp_path / "hlo_test_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("hlo_test_package", None)


def test_read_examples(package: Path) -> None:
    """Examples are read from the package's TOML file, a part a key, into a read-only mapping."""
    (package / "examples.toml").write_text('patients = ["a?", "ü?"]\nclinical = []\n', encoding="utf-8")
    found = plugins.read_examples("hlo_test_package")
    assert found == {"patients": ("a?", "ü?"), "clinical": ()}
    assert isinstance(found, MappingProxyType)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no file `examples.toml`"),
        (b"patients = [", "is not TOML"),
        (b'patients = "one"', "`patients` must be an array of strings"),
        (b"patients = [1]", "`patients` must be an array of strings"),
        (b"[patients]\nx = 1", "`patients` must be an array of strings"),
        ('patients = ["ü"]'.encode("latin-1"), "`examples.toml`"),
    ],
)
def test_read_examples_refuses(content: bytes | None, said: str, package: Path) -> None:
    """A missing, broken or wrongly typed file of examples is refused with its name and the package's."""
    if content is not None:
        (package / "examples.toml").write_bytes(content)
    with pytest.raises(PluginError) as caught:
        plugins.read_examples("hlo_test_package")
    assert said in caught.value.message
    assert "`hlo_test_package`" in caught.value.message
    assert caught.value.remedy


def test_read_examples_of_a_package_that_is_not_there() -> None:
    """A package that does not exist is refused by name."""
    with pytest.raises(PluginError, match="`hlo_test_nowhere` holds no file"):
        plugins.read_examples("hlo_test_nowhere")
