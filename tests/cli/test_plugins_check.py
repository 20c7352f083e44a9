"""`hlo plugins check`, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo import assemble
from hlo.cli import findings
from hlo.generation import adapters
from hlo.records import Finding
from hlo.testing import HashingEncoder

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from tests.cli.conftest import Done, Hlo
    from tests.conftest import MakeAdapter, Plugins

JOINTS = tuple(
    f"{joint} {feeling}" for joint in ("knee", "hip", "wrist", "elbow") for feeling in ("aches", "swells", "itches")
)
FALLS = ("fall frail", "fall slip", "fall trip", "fall stairs", "fall knee aches")
SHOUT = "<script>alert('knee')</script> aches & \"swells\""

Check = Callable[..., "Done"]


@pytest.fixture
def check(
    hlo: Hlo,
    plugins: Plugins,
    make_adapter: MakeAdapter,
    tiny_model: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Check:
    """Run `hlo plugins check` on the installed plugin `joints`, beside `falls`, with the encoder that knows words."""
    monkeypatch.setattr(assemble, "load_encoder", lambda *_: HashingEncoder())
    monkeypatch.setenv("HLO_DEVICE", "cpu")
    monkeypatch.setenv("HLO_BACKGROUND", "false")
    monkeypatch.setenv("HLO_CACHE_DIR", str(tmp_path / "cache"))
    make_adapter(tmp_path / "adapters" / "joints")
    plugins("joints", "joints", reference="joints", examples=JOINTS)
    plugins("falls", "falls", reference="falls", examples=FALLS)
    settings = ("--model", str(tiny_model.folder), "--adapter-path", str(tmp_path / "adapters"))

    def run(*arguments: str, name: str = "joints") -> Done:
        return hlo("plugins", "check", name, *settings, *arguments)

    return run


class Reader(HTMLParser):
    """What a browser would make of a page: tags that are open in the end, all tags, all attributes, all text."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep."""
        if self.open[-1:] != ["style"]:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def states(told: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in told["findings"]:
        found.setdefault(one["topic"], set()).add(one["state"])
    return found


def test_json(check: Check) -> None:
    """JSON tells the plugin, the findings and the audit's shares; the engine that was asked for measured the effect."""
    done = check("--json", "--max-moved", "0.5", "--engine", "transformers")
    told = json.loads(done.out)
    assert done.status == 0
    assert told["plugin"] == {
        "name": "hlo-test-joints",
        "version": "1.5",
        "kind": "installed",
        "place": "the installed package hlo-test-joints",
        "entry_points": ["joints"],
    }
    assert states(told)["effect"] == {"ok"}
    assert states(told)["catchment"] == {"ok"}
    assert told["audit"]["new"] == ["joints"]
    (falls,) = [one for one in told["audit"]["catchments"] if one["specialty"] == "falls"]
    assert (falls["before"], falls["lost"], falls["share"]) == (5, 1, 0.2)
    assert told["audit"]["homes"][0]["home"] == len(JOINTS) - 1  # `knee aches` is nearer to falls


@pytest.mark.parametrize(("most", "status"), [("0.2", 0), ("0.19", 1)])
def test_questions_that_move(most: str, status: int, check: Check) -> None:
    """The questions that move are shown with where they go; more than may move exits 1."""
    done = check("--no-engine", "--max-moved", most)
    assert done.status == status
    assert "1 of 17 questions would go elsewhere" in done.out
    (row,) = [line for line in done.out.splitlines() if "knee aches" in line and "falls 0." in line]
    assert "joints 0." in row
    (share,) = [line for line in done.out.splitlines() if line.startswith("│ falls")]
    assert share.split() == ["│", "falls", "│", "5", "│", "1", "│", "20.0%", "│"]


def test_the_shown_are_few(check: Check, tmp_path: Path) -> None:
    """Twenty moved questions are shown, and how many more there are is told with where they stand."""
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(f"elbow itches {number}" for number in range(30)), encoding="utf-8")
    done = check("--no-engine", "--max-moved", "1", "--questions", str(file))
    assert sum("elbow itches" in line for line in done.out.splitlines()) == 20
    assert "11 more in the report (`--report FILE.html`)." in done.out
    assert "30 of 30" in done.out


def test_the_report(check: Check, tmp_path: Path) -> None:
    """The report is one page that loads and runs nothing, and has findings, shares, moved questions and the matrix."""
    file, page = tmp_path / "questions.jsonl", tmp_path / "report.html"
    lines = [{"question": SHOUT}, {"question": "hip itches", "specialty": "<b>bakery</b>"}]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = check("--no-engine", "--max-moved", "1", "--questions", str(file), "--report", str(page))
    assert done.status == 0
    source = page.read_text(encoding="utf-8")
    found = Reader(source)
    assert found.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert found.tags.count("b") == 1  # the page's own
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in found.attributes}
    assert "url(" not in source
    assert "@import" not in source
    assert SHOUT in found.text
    assert "<script" not in source
    moved = next(row for row in found.cells if row[0] == SHOUT)
    assert [moved[1], moved[2], moved[4]] == ["not said (yours)", "falls", "joints"]
    moved = next(row for row in found.cells if row[0] == "hip itches")
    assert [moved[1], moved[2], moved[4]] == ["<b>bakery</b> (yours)", "out_of_scope", "joints"]
    matrix = [row for row in found.cells if row[0] == "falls" and len(row) == 4]
    assert matrix == [["falls", "4", "1", "0"]]
    assert ["<b>bakery</b>", "0", "1", "0"] in found.cells
    assert "hlo-test-joints 1.5: examination" in found.text
    tables = found.tags.count("table")
    assert (tables, found.tags.count("caption")) == (5, 5)
    assert ("lang", "en") in found.attributes
    assert {value for name, value in found.attributes if name == "scope"} == {"row", "col"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--questions", "nowhere.txt"), "nowhere.txt"),
        (("--report", "no/folder/report.html"), "can not be written"),
        (("--max-moved", "2"), "max-moved"),
    ],
)
def test_what_was_asked_wrongly(arguments: tuple[str, ...], said: str, check: Check) -> None:
    """Options that can not be followed exit 2 before anything is examined."""
    done = check("--no-engine", *arguments)
    assert (done.status, done.out) == (2, "")
    assert said in done.err


def test_nothing_of_that_name(check: Check) -> None:
    """A plugin that is not there exits 1, with names that are like it."""
    done = check("--no-engine", name="joint")
    assert (done.status, done.out) == (1, "")
    assert "Did you mean `joints`" in done.err


def test_trouble(check: Check, tmp_path: Path) -> None:
    """Trouble exits 1 with its remedy, and the report says that the plugin is not fit to go live."""
    (tmp_path / "adapters" / "joints" / adapters.WEIGHTS).write_bytes(b"damaged")
    page = tmp_path / "report.html"
    done = check("--no-engine", "--max-moved", "1", "--report", str(page))
    assert done.status == 1
    assert "Fetch or save it again." in done.out
    assert "Not fit to go live" in Reader(page.read_text(encoding="utf-8")).text


def test_what_a_plugin_prints(check: Check, tmp_path: Path) -> None:
    """What a plugin prints when it is imported does not get into the JSON."""
    module = tmp_path / "plugins" / "hlo_test_joints.py"
    module.write_text(f"print('noise')\n{module.read_text(encoding='utf-8')}", encoding="utf-8")
    done = check("--no-engine", "--json")
    assert json.loads(done.out)["plugin"]["name"] == "hlo-test-joints"
    assert "noise" in done.err


def test_findings_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and remedies are printed as they are, brackets and all."""
    monkeypatch.setenv("COLUMNS", "200")
    findings.draw([Finding("engine", "trouble", "No [/INST] here.", "`pip install 'hlo[gpu]'`")])
    printed = capsys.readouterr().out
    assert "No [/INST] here." in printed
    assert "`pip install 'hlo[gpu]'`" in printed
