"""`hlo route calibrate`, `evaluate` and `explain`, with a router of real banks and an encoder that knows words only."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo.records import Adapter, Embeddings, Specialty
from hlo.routing import bank, calibration
from hlo.routing.bank import Bank
from hlo.routing.batching import BatchingEncoder
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.router import Router
from hlo.testing import HashingEncoder

if TYPE_CHECKING:
    from hlo.settings import Settings
    from tests.cli.conftest import Hlo

WORDS = {
    "cardiology": "heart chest pulse pressure valve artery palpitations ankles",
    "neurology": "brain headache seizure numb nerve tremor stroke memory",
    "oncology": "tumour cancer lump chemotherapy radiation biopsy growth spread",
    "everyday": "parking ticket weather recipe football train garden holiday",
}
ENCODER = HashingEncoder()

Write = Callable[..., Path]


def groups(*names: str) -> list[bank.Group]:
    return [
        bank.embedded(name, tuple(" ".join(WORDS[name].split()[at:]) for at in range(4)), ENCODER) for name in names
    ]


class Installed:
    """What the commands find: the groups, and the settings that they asked with."""

    def __init__(self) -> None:
        self.specialties = groups("cardiology", "neurology", "oncology")
        self.background = groups("everyday")
        self.thresholds = Thresholds(0.5, 0.5)
        self.asked: list[Settings] = []

    async def assemble_router(self, settings: Settings) -> tuple[Router, BatchingEncoder]:
        """In the place of `hlo.assemble.assemble_router`."""
        self.asked.append(settings)
        encoder = BatchingEncoder(ENCODER, 32)
        among = Bank.of(self.specialties, self.background, dimension=ENCODER.dimension)
        return Router(encoder, among, Scale(), self.thresholds), encoder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Three specialties and a background."""
    found = Installed()
    monkeypatch.setattr("hlo.assemble.assemble_router", found.assemble_router)
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of labelled questions of their specialty's words, with a few that mislead."""

    def to(questions: int, *, misleading: float = 0.02, everyday: bool = True) -> Path:
        chance = random.Random(3)
        names = [name for name in WORDS if everyday or name != "everyday"]
        lines = []
        for number in range(questions):
            name = chance.choice(names)
            spoken = chance.choice(names) if chance.random() < misleading else name
            words = chance.sample(WORDS[spoken].split(), 4)
            told = {"question": f"{' '.join(words)} {number}", "specialty": None if name == "everyday" else name}
            lines.append(json.dumps(told))
        file = tmp_path / "labelled.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    return to


def test_a_calibration_is_made(hlo: Hlo, installed: Installed, write: Write) -> None:
    """What is written holds for the encoder and the specialties that are there; the summary says what it promises."""
    done = hlo("route", "calibrate", str(write(500)))
    assert (done.status, done.err) == (0, "")
    made = calibration.load(Path("calibration.json"))
    digests = {one.name: one.digest for one in installed.specialties}
    background = Router(BatchingEncoder(ENCODER, 1), *_parts(installed)).background_digest
    assert calibration.check(made, ENCODER.fingerprint, digests, background) is None
    assert (made.tolerated_error, made.confidence, made.tolerated_rejection) == (0.05, 0.95, 0.05)
    assert made.counts.fitting + made.counts.in_scope + made.counts.out_of_scope == 500
    told = " ".join(done.out.split())
    assert f"min_probability to {made.thresholds.min_probability:g}" in told
    assert "at most 5.0% of the routed ones" in told
    assert "HLO_CALIBRATION=calibration.json" in told
    assert "nothing is promised" not in told


def _parts(installed: Installed) -> tuple[Bank, Scale, Thresholds]:
    among = Bank.of(installed.specialties, installed.background, dimension=ENCODER.dimension)
    return among, Scale(), installed.thresholds


def test_what_is_tolerated_can_be_chosen(hlo: Hlo, installed: Installed, write: Write) -> None:
    """The options become what the calibration promises, and the file goes where it is told to."""
    options = ["--tolerate", "0.1", "--confidence", "0.9", "--reject", "0.02", "--out", "mine.json"]
    assert hlo("route", "calibrate", str(write(500)), *options).status == 0
    made = calibration.load(Path("mine.json"))
    assert (made.tolerated_error, made.confidence, made.tolerated_rejection) == (0.1, 0.9, 0.02)
    assert not Path("calibration.json").exists()


def test_an_older_calibration_takes_no_part(
    hlo: Hlo, installed: Installed, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrating asks without the calibration that is set, which may be of other specialties; evaluating with it."""
    monkeypatch.setenv("HLO_CALIBRATION", "older.json")
    file = str(write(500))
    assert hlo("route", "calibrate", file).status == 0
    assert hlo("route", "evaluate", file).status == 0
    assert [one.calibration for one in installed.asked] == [None, Path("older.json")]


def test_without_questions_for_nobody_it_is_said(hlo: Hlo, installed: Installed, write: Write) -> None:
    """A file in which every question has a specialty calibrates, and the summary says what is missing."""
    done = hlo("route", "calibrate", str(write(500, everyday=False)))
    assert done.status == 0
    assert "nothing is promised where such questions come" in done.out


@pytest.mark.parametrize(
    ("questions", "misleading", "told"),
    [(20, 0.0, r"error: \d+ questions with a specialty are left"), (400, 1.0, "error: No threshold keeps the errors")],
)
def test_what_can_not_be_calibrated_exits_1(
    questions: int, misleading: float, told: str, hlo: Hlo, installed: Installed, write: Write
) -> None:
    """Too few questions, or too many errors, exit 1 with what to do, and write nothing."""
    done = hlo("route", "calibrate", str(write(questions, misleading=misleading)))
    assert (done.status, done.out) == (1, "")
    assert re.search(told, done.err)
    assert "remedy: Give" in done.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"question": "my words"}', "Line 1 of"),
        ('{"question": "my words", "specialty": "dermatology"}', "`dermatology`, which is not installed"),
        ("\n", "holds no question"),
    ],
)
def test_a_wrong_file_exits_2(command: str, content: str, told: str, hlo: Hlo, installed: Installed) -> None:
    """A file that can not be used exits 2 with its name and line, and none of its words."""
    Path("wrong.jsonl").write_text(content, encoding="utf-8")
    done = hlo("route", command, "wrong.jsonl")
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert "`wrong.jsonl`" in done.err
    assert "my words" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "labelled.jsonl", "--out", "no/such/folder.json"],
        ["evaluate", "labelled.jsonl", "--html", "no/such/folder.html"],
        ["calibrate", "missing.jsonl"],
    ],
    ids=str,
)
def test_files_are_looked_at_first(arguments: list[str], hlo: Hlo, installed: Installed) -> None:
    """A place that can not be written, or a file that is not there, exits 2 before the encoder is loaded."""
    Path("labelled.jsonl").write_text('{"question": "q", "specialty": null}', encoding="utf-8")
    done = hlo("route", *arguments)
    assert done.status == 2
    assert "error:" in done.err
    assert installed.asked == []


@pytest.mark.parametrize("value", ["0", "1", "-1", "many"])
@pytest.mark.parametrize("option", ["--tolerate", "--confidence", "--reject"])
def test_shares_are_between_0_and_1(option: str, value: str, hlo: Hlo, installed: Installed) -> None:
    """What is tolerated is a share above 0 and below 1."""
    done = hlo("route", "calibrate", "labelled.jsonl", option, value)
    assert done.status == 2
    assert option in done.err


def test_an_evaluation_is_told(hlo: Hlo, installed: Installed, write: Write) -> None:
    """The tables hold the shares that `--json` has, over all and for each specialty."""
    file = str(write(200))
    told = json.loads(hlo("route", "evaluate", file, "--json").out)
    assert told["questions"] == 200
    done = hlo("route", "evaluate", file)
    assert (done.status, done.err) == (0, "")
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in done.out.splitlines()}
    first, best = told["first"], told["specialties"][0]
    assert f"{first['count']} of {first['of']} {first['value']:.1%}" in rows["Best specialty is the labelled one"]
    assert best["specialty"] == "cardiology"
    for share in (best["recall"], best["precision"]):
        assert f"{share['count']} of {share['of']} {share['value']:.1%}" in rows["cardiology"]
    assert {"neurology", "oncology"} <= set(rows)


class Page(HTMLParser):
    """An HTML page: its tags, its words, and whatever it would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.loads: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Remember it."""
        self.tags.append(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href", "onclick", "onload")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """Remember it."""
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Remember the words."""
        self.words.append(data)


def test_an_evaluation_is_a_page(hlo: Hlo, installed: Installed, write: Write) -> None:
    """`--html` writes one page that loads and runs nothing, with its pictures inside and none of the questions."""
    file = write(200)
    assert hlo("route", "evaluate", str(file), "--html", "report.html").status == 0
    text = Path("report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert "prefers-color-scheme: dark" in text
    words = " ".join(page.words)
    for wanted in ("Routing, evaluated", "labelled.jsonl", "hashing-256", "min_probability 0.5", "out_of_scope"):
        assert wanted in words
    told = json.loads(hlo("route", "evaluate", str(file), "--json").out)
    points = [one for one in told["reliability"] if one["right"]["of"]]
    plot = text[text.index('<svg class="plot"') :].split("</svg>")[0]
    assert plot.count('class="point"') == len(points) > 1
    assert plot.count('class="column"') == 10
    assert "nan" not in plot
    for row in told["confusion"]["counts"]:
        assert all(f">{count:,}</td>" in text for count in row)
    assert not any(json.loads(line)["question"] in text for line in file.read_text(encoding="utf-8").splitlines())


def test_an_evaluation_of_little_is_a_page(hlo: Hlo, installed: Installed) -> None:
    """A single question makes a page too, with nothing where there is nothing; names are escaped."""
    installed.specialties.append(bank.embedded("<b>", ("xyzzy",), ENCODER))
    Path("one.jsonl").write_text('{"question": "heart", "specialty": null}', encoding="utf-8")
    assert hlo("route", "evaluate", "one.jsonl", "--html", "report.html").status == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "b" not in Page(text).tags
    assert "&lt;b&gt;" in text


def test_a_route_is_explained(hlo: Hlo, installed: Installed) -> None:
    """The nearest examples of specialties and background are shown with whose they are, and what decided."""
    done = hlo("route", "explain", "heart chest parking")
    assert (done.status, done.err) == (0, "")
    assert re.search(r"cardiology +│ heart chest pulse", done.out)
    assert re.search(r"everyday \(no specialty\) +│ parking", done.out)
    cosines = [float(one) for one in re.findall(r"^│ +(0\.\d+) │ ", done.out, re.MULTILINE)]
    assert len(cosines) == 5
    assert cosines == sorted(cosines, reverse=True)
    assert re.search(r"0\.\d+ (above|below) min_in_scope \(0\.5\)", done.out)


@pytest.mark.parametrize(
    ("question", "thresholds", "told"),
    [
        (
            "heart chest pulse",
            Thresholds(0.0, 0.0),
            r"Routed: that cardiology fits has (\S+), \1 above min_probability",
        ),
        ("heart brain", Thresholds(0.0, 1.0), r"Ambiguous: that \w+ fits has \S+, \S+ below min_probability \(1\)"),
        ("heart brain", Thresholds(1.0, 1.0), r"Out of scope: that any .* has probability \S+, \S+ below min_in_scope"),
    ],
)
def test_the_threshold_that_decided_is_named(
    question: str, thresholds: Thresholds, told: str, hlo: Hlo, installed: Installed
) -> None:
    """Each kind of route says which threshold made it so, and by how much."""
    installed.thresholds = thresholds
    assert re.search(told, " ".join(hlo("route", "explain", question).out.split()))


def test_examples_without_words_are_shown(hlo: Hlo, installed: Installed) -> None:
    """An author's own embeddings have no words, and are shown by their number."""
    vectors = Embeddings(ENCODER.fingerprint, {"p": ENCODER.encode(["kidney", "urine"]).tolist()})
    author = Specialty(name="nephrology", title="", adapter=Adapter("n"), embeddings=vectors)
    installed.specialties.append(bank.group(author, ENCODER))
    done = hlo("route", "explain", "urine", "--examples", "1")
    assert re.search(r"1\.000 │ nephrology │ no words, only an embedding \(number 2\)", done.out)
    assert "The nearest examples" not in hlo("route", "explain", "urine", "--examples", "0").out


@pytest.mark.parametrize("names", [(), ("cardiology",)])
def test_few_specialties_are_explained(names: tuple[str, ...], hlo: Hlo, installed: Installed) -> None:
    """Where there is one specialty, or none, that is the explanation."""
    installed.specialties, installed.background = groups(*names), []
    done = hlo("route", "explain", "heart chest pulse pressure")
    assert done.status == 0
    assert ("there is no other specialty" if names else "there is no specialty to go to") in done.out
