"""Does the right specialist get the question, and are the others turned away? Tables of methods, with the peer's.

The questions are those of benchmarks/data. MedQuAD's and CLINC150's, which are not in this repository, are added where
ROUTING_DATA names a folder with routing_medquad_dev.jsonl and routing_out_of_scope_dev.jsonl (see models/hlo-encoder's
card). PEER_PYTHON is the Python of an environment with semantic-router and sentence-transformers' requirements;
`nox -s bench -- routing` makes it. Without it, the peer's rows are left out, and the table says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.report import tell
from hlo.assemble import assemble_router, declarations, load_encoder
from hlo.plugins import Hooks
from hlo.records import Specialty
from hlo.routing import background, bank, sentence_encoder
from hlo.routing.background import Background
from hlo.routing.bank import Bank
from hlo.routing.cache import CachedEncoder
from hlo.routing.decision import Scale, probabilities
from hlo.settings import Settings, load_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hlo.contracts import Encoder

    Table = NDArray[np.floating[Any]]

PLAIN = "sentence-transformers/all-MiniLM-L6-v2"
DATA = Path(__file__).parent / "data"
KEPT = 0.95  # of the questions that a specialty answers, when the others are turned away


class Row(msgspec.Struct, frozen=True):
    """A labelled question."""

    question: str
    specialty: str | None = None
    uninstalled: str | None = None
    everyday: bool = False


class Dialogue(msgspec.Struct, frozen=True):
    """A conversation, and where its last turn belongs."""

    turns: tuple[str, ...]
    last: str
    last_specialty: str | None = None


# For each question, the specialties best first, and how sure it is that any of them fits.
Method = Callable[[Sequence[str]], tuple[list[list[str]], "Table"]]


def read(file: Path, kind: Any) -> list[Any]:
    """The lines of a JSON lines file."""
    return [msgspec.json.decode(line, type=kind) for line in file.read_text(encoding="utf-8").splitlines()]


def sets() -> dict[str, list[Row]]:
    """The questions, by the name of their set."""
    found = {name: read(DATA / f"own_words_{name}.jsonl", Row) for name in ("dev", "test")}
    if folder := os.environ.get("ROUTING_DATA"):
        found["MedQuAD"] = read(Path(folder, "routing_medquad_dev.jsonl"), Row)
        found["CLINC150"] = read(Path(folder, "routing_out_of_scope_dev.jsonl"), Row)
    return found


def by_table(names: Sequence[str], table: Table) -> tuple[list[list[str]], Table]:
    """A method's result from its scores, shape (questions, specialties)."""
    order = np.argsort(-table, axis=1, kind="stable")
    return [[names[place] for place in row] for row in order.tolist()], table.max(axis=1)


def most_similar(encoder: Encoder, specialties: Sequence[Specialty]) -> Method:
    """Each specialty's score is that of its most similar example."""
    groups = [bank.group(one, encoder) for one in specialties]

    def method(questions: Sequence[str]) -> tuple[list[list[str]], Table]:
        vectors = encoder.encode(questions)
        return by_table([g.name for g in groups], np.stack([(vectors @ g.examples.T).max(1) for g in groups], axis=1))

    return method


def mean_prototype(encoder: Encoder, specialties: Sequence[Specialty]) -> Method:
    """Each specialty's score is the cosine with the mean of its examples."""
    groups = [bank.group(one, encoder) for one in specialties]

    def method(questions: Sequence[str]) -> tuple[list[list[str]], Table]:
        return by_table([g.name for g in groups], encoder.encode(questions) @ np.stack([g.mean for g in groups]).T)

    return method


def density(encoder: Encoder, specialties: Sequence[Specialty], *, behind: bool, without: str = "") -> Method:
    """HLO's own, with or without the background, of which the field `without` may be left out."""
    groups = tuple(bank.group(one, encoder) for one in specialties)
    others = Background.load(encoder) if behind else Background()
    others = Background(tuple(one for one in others.groups if one.name != without))
    among = Bank.of(groups, background.uncovered(others, groups), dimension=encoder.dimension)

    def method(questions: Sequence[str]) -> tuple[list[list[str]], Table]:
        found = among.compare(encoder.encode(questions))
        ranks = [[score.specialty for score in one.scores] for one in found]
        if not behind:
            return ranks, np.array([one.scores[0].score for one in found])
        return ranks, np.array([1 - probabilities(one, Scale())[1] for one in found])

    return method


def figures(label: str, method: Method, data: Mapping[str, list[Row]]) -> dict[str, object]:
    """One row of the table, in per cent."""
    row: dict[str, object] = {"method": label}
    sure: dict[str, Table] = {}
    for name, rows in data.items():
        ranks, sure[name] = method([one.question for one in rows])
        inside = [(one, rank) for one, rank in zip(rows, ranks, strict=True) if one.specialty]
        if inside:
            row[f"{name} 1"] = 100 * float(np.mean([rank[0] == one.specialty for one, rank in inside]))
            row[f"{name} 2"] = 100 * float(np.mean([one.specialty in rank[:2] for one, rank in inside]))
    kept = [sure[name][number] for name in ("dev", "test") for number, one in enumerate(data[name]) if one.specialty]
    limit = np.quantile(kept, 1 - KEPT)
    for label, wanted in (("everyday", "everyday"), ("uninstalled", "uninstalled")):
        turned = [
            sure[name][number] < limit
            for name in ("dev", "test")
            for number, one in enumerate(data[name])
            if getattr(one, wanted)
        ]
        row[f"{label} out"] = 100 * float(np.mean(turned))
    if "CLINC150" in data:
        row["CLINC150 out"] = 100 * float(np.mean(sure["CLINC150"] < limit))
    return row


def unknown_fields(encoder: Encoder, specialties: Sequence[Specialty], data: Mapping[str, list[Row]]) -> float:
    """The share of questions for uninstalled specialties that are turned away when the background lacks their field."""
    rows = [one for name in ("dev", "test") for one in data[name]]
    fields = sorted({one.uninstalled for one in rows if one.uninstalled})
    inside = [one.question for one in rows if one.specialty]
    turned: list[bool] = []
    for field in track(fields, "fields left out of the background"):
        method = density(encoder, specialties, behind=True, without=field)
        limit = np.quantile(method(inside)[1], 1 - KEPT)
        turned += (method([one.question for one in rows if one.uninstalled == field])[1] < limit).tolist()
    return 100 * float(np.mean(turned))


def ask_peer(specialties: Sequence[Specialty], questions: Sequence[str], seconds: float = 5) -> dict[str, Any] | None:
    """The peer's choices and speed, with the plain encoder's weights and the same examples; None without the peer."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        return None
    asked = {
        "encoder": str(sentence_encoder.locate(PLAIN)),
        "routes": {one.name: [text for part in one.examples.values() for text in part] for one in specialties},
        "questions": list(questions),
        "clients": [1, 8, 32],
        "seconds": seconds,
    }
    peer = Path(__file__).with_name("peer.py")
    done = subprocess.run([python, str(peer)], input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the peer failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def quality(settings: Settings, specialties: Sequence[Specialty]) -> None:
    """The table of methods."""
    data = sets()
    folder = settings.cache_dir / "embeddings"
    plain = CachedEncoder(load_encoder(load_settings(encoder=PLAIN), Hooks()), folder)
    own = CachedEncoder(load_encoder(settings, Hooks()), folder)
    methods: list[tuple[str, Method]] = [
        ("plain, nearest example", most_similar(plain, specialties)),
        ("plain, mean example", mean_prototype(plain, specialties)),
        ("plain, density", density(plain, specialties, behind=False)),
        ("plain, density, background", density(plain, specialties, behind=True)),
        ("HLO's encoder, density", density(own, specialties, behind=False)),
        ("HLO as it comes", density(own, specialties, behind=True)),
    ]
    rows = [figures(label, method, data) for label, method in track(methods, "methods")]
    asked = [(name, one) for name, some in data.items() for one in some if one.specialty]
    peer = ask_peer(specialties, [one.question for _, one in asked])
    if peer:
        first: dict[str, object] = dict.fromkeys(rows[0], "")
        first["method"] = "semantic-router 1.1.1"
        for name in data:
            right = [c == o.specialty for c, (n, o) in zip(peer["chosen"], asked, strict=True) if n == name]
            if right:
                first[f"{name} 1"] = 100 * float(np.mean(right))
        rows.insert(0, first)
    else:
        Console().print("PEER_PYTHON is not set: semantic-router is left out")
    title = (
        f"Per cent right at first (1) or among two (2); turned away (out) while {KEPT:.0%} of patients' questions stay"
    )
    tell("routing_quality", title, rows)
    share = unknown_fields(own, specialties, data)
    tell("routing_unknown", "Uninstalled, their field not in the background", [{"rejected %": share}])


async def dialogues(settings: Settings) -> None:
    """The table of conversations."""
    router, encoder = await assemble_router(settings)
    rows = []
    for label, view in (
        ("the last turn alone", lambda turns: (turns[-1], ())),
        ("all turns as one text", lambda turns: (" ".join(turns), ())),
        ("HLO", lambda turns: (turns[-1], turns[:-1])),
    ):
        row: dict[str, object] = {"method": label}
        for name in ("dev", "test"):
            found: dict[str, list[bool]] = {"follow_up": [], "new_topic": []}
            for one in track(read(DATA / f"dialogues_{name}.jsonl", Dialogue), f"{label}, {name}"):
                route = await router.route(*view(one.turns))
                found[one.last].append(route.specialty == one.last_specialty)
            row |= {f"{name} {kind}": 100 * float(np.mean(right)) for kind, right in found.items()}
        rows.append(row)
    encoder.close()
    tell("routing_dialogues", "Per cent of last turns that go where they belong", rows)


def main() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as cache:
        settings = load_settings(cache_dir=cache, log_level="warning")
        specialties, _ = declarations(settings)
        quality(settings, specialties)
        asyncio.run(dialogues(settings))
    from benchmarks import routing_scale, routing_speed

    routing_speed.main()
    routing_scale.main()


if __name__ == "__main__":
    main()
