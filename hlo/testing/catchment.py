"""The catchment audit: which questions a new plugin would take, and from whom.

Every question is routed twice by the real decision, without the new specialties and with them. Routing compares a
question with the examples of all, so a new specialty can only be judged among those that it is to stand beside. An
example is compared with all others but itself, as a patient's question would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from hlo.contracts import Encoder
from hlo.errors import PluginError
from hlo.records import Route, Specialty
from hlo.routing import background, bank, labelled
from hlo.routing.background import Background
from hlo.routing.bank import Bank, Group
from hlo.routing.cache import CachedEncoder
from hlo.routing.decision import Scale, Thresholds, decide
from hlo.routing.evaluation import NOWHERE, Confusion
from hlo.testing.remembering import Remembering

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN = "(your questions)"
"""What stands in the place of a specialty's name for an operator's questions that do not say whose they are."""


class Asked(Struct, frozen=True):
    """A question of the operator's, and the specialty that ought to get it, where somebody has said so."""

    text: str
    specialty: str | None = None


class Moved(Struct, frozen=True):
    """A question that goes elsewhere once the new specialties are there.

    `owner` is the specialty that it belongs to (None: nobody said), `given` whether it is one of the operator's.
    `before` and `after` are specialties, or None for out of scope, and the scores are those of the best specialty.
    """

    question: str
    owner: str | None
    given: bool
    before: str | None
    score_before: float
    after: str | None
    score_after: float

    @property
    def change(self) -> float:
        """By how much the best score rises."""
        return self.score_after - self.score_before


class Catchment(Struct, frozen=True):
    """What one specialty (or `out_of_scope`) loses to the new ones.

    `before` counts the questions that went there and are known to be no new specialty's: examples, and those of the
    operator's that say whose they are. `lost` of them go to a new specialty now. `given` and `given_lost` count the
    operator's other questions.
    """

    specialty: str
    before: int
    lost: int
    given: int = 0
    given_lost: int = 0

    @property
    def share(self) -> float:
        """The share that is lost, from 0 to 1; 0 where nothing went there before."""
        return self.lost / self.before if self.before else 0.0


class Home(Struct, frozen=True):
    """Where a new specialty's own examples go: how many there are, and how many to each place, most first."""

    specialty: str
    examples: int
    places: Mapping[str, int]

    @property
    def home(self) -> int:
        """How many come home."""
        return self.places.get(self.specialty, 0)

    @property
    def share(self) -> float:
        """The share that comes home, from 0 to 1."""
        return self.home / self.examples if self.examples else 0.0


class Audit(Struct, frozen=True):
    """What the new specialties change. `questions` counts all that were routed, `given` those of the operator's.

    `moved` is in the order of the scores' change, largest first. `unsettled` counts questions that stay where they
    were, but become ambiguous or cease to be. `left_out` are installed specialties without usable examples, which are
    not served.
    """

    new: tuple[str, ...]
    questions: int
    given: int
    moved: tuple[Moved, ...]
    unsettled: int
    catchments: tuple[Catchment, ...]
    homes: tuple[Home, ...]
    confusion: Confusion
    left_out: tuple[str, ...] = ()


class _Row(Struct, frozen=True):
    text: str
    owner: str | None
    given: bool
    vector: NDArray[np.float32]


def audit(
    new: Sequence[Specialty],
    installed: Sequence[Specialty],
    encoder: Encoder,
    thresholds: Thresholds,
    questions: Sequence[Asked] = (),
    *,
    others: bool = True,
    cache: Path | None = None,
) -> Audit:
    """Route every example and every question without and with the specialties `new`.

    `installed` are all others; `others` compares with the background, too, whose embeddings are kept in the folder
    `cache`, where a server keeps them. Raises `PluginError` when a new specialty has no usable examples, and
    `EncoderError`.
    """
    known = Remembering(encoder)
    texts = [text for one in (*installed, *new) for text in all_examples(one)]
    known.encode([*texts, *(one.text for one in questions)])  # at once: an encoder is quickest with large batches
    old, left_out = _groups(installed, known)
    added = tuple(bank.group(one, known) for one in new)
    behind = Background.load(CachedEncoder(known, cache) if cache else known) if others else Background()
    before_bank, after_bank = (
        Bank.of(among, background.uncovered(behind, among), dimension=known.dimension) for among in (old, old + added)
    )
    rows = [row for one in installed if one.name not in left_out for row in _examples(one, known)]
    rows += [_Row(one.text, one.specialty, True, known.encode([one.text])[0]) for one in questions]
    own = [row for one in new for row in _examples(one, known)]
    before, after = (_routes(rows, among, thresholds) for among in (before_bank, after_bank))
    home = _routes(own, after_bank, thresholds)
    names = tuple(group.name for group in added)
    walks = list(zip(rows, before, after, strict=True))
    moved = [
        Moved(row.text, row.owner, row.given, was.specialty, _best(was), now.specialty, _best(now))
        for row, was, now in walks
        if was.specialty != now.specialty
    ]
    return Audit(
        new=names,
        questions=len(rows) + len(own),
        given=len(questions),
        moved=tuple(sorted(moved, key=lambda one: (-abs(one.change), one.question))),
        unsettled=sum(was.specialty == now.specialty and was.status != now.status for _, was, now in walks),
        catchments=_catchments(walks, names, before_bank.names),
        homes=_homes(own, home, names),
        confusion=_confusion([*rows, *own], [*after, *home], after_bank.names),
        left_out=left_out,
    )


def all_examples(specialty: Specialty) -> tuple[str, ...]:
    """All of a specialty's examples, part after part."""
    return tuple(text for part in specialty.examples.values() for text in part)


def read_questions(file: Path) -> tuple[Asked, ...]:
    """An operator's questions: one a line, or JSON lines with `question` and, where it is known, `specialty`.

    Raises `SettingsError` with the line's number, and never its words.
    """
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        return tuple(Asked(one.text, one.specialty) for one in labelled.read(file, partly=True))
    return tuple(Asked(line) for _, line in labelled.lines(file))


def _groups(installed: Sequence[Specialty], encoder: Encoder) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """The examples of those that have usable ones, and the names of the others, which HLO would not serve."""
    groups, left_out = [], []
    for specialty in installed:
        try:
            groups.append(bank.group(specialty, encoder))
        except PluginError:
            left_out.append(specialty.name)
    return tuple(groups), tuple(sorted(left_out))


def _examples(specialty: Specialty, encoder: Encoder) -> list[_Row]:
    """A specialty's examples; where the author gave embeddings and no words, those."""
    texts = all_examples(specialty)
    if texts or specialty.embeddings is None:
        vectors = encoder.encode(texts)
    else:
        parts = dict(zip(specialty.embeddings.parts, bank.given(specialty, encoder), strict=True))
        texts = tuple(f"({name}, {number})" for name, part in parts.items() for number in range(1, len(part) + 1))
        vectors = np.concatenate(list(parts.values()))
    return [_Row(text, specialty.name, False, vector) for text, vector in zip(texts, vectors, strict=True)]


def _routes(rows: Sequence[_Row], among: Bank, thresholds: Thresholds) -> list[Route]:
    if not rows:
        return []
    comparisons = among.compare(np.stack([row.vector for row in rows]), leave_out=True)
    return [decide(one, Scale(), thresholds) for one in comparisons]


def _best(route: Route) -> float:
    return route.scores[0].score if route.scores else 0.0


def _catchments(
    walks: Iterable[tuple[_Row, Route, Route]], new: Sequence[str], names: Sequence[str]
) -> tuple[Catchment, ...]:
    before, lost, given, given_lost = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row, was, now in walks:
        place, gone = was.specialty or NOWHERE, now.specialty in new
        if row.owner is None:
            given[place] += 1
            given_lost[place] += gone
        elif row.owner not in new:  # a question that belongs to the new specialty is no loss to anybody
            before[place] += 1
            lost[place] += gone
    found = [Catchment(name, before[name], lost[name], given[name], given_lost[name]) for name in (*names, NOWHERE)]
    return tuple(sorted(found, key=lambda one: (-one.share, -one.given_lost, one.specialty)))


def _homes(rows: Sequence[_Row], routes: Sequence[Route], new: Sequence[str]) -> tuple[Home, ...]:
    places: dict[str, Counter[str]] = {name: Counter() for name in new}
    for row, route in zip(rows, routes, strict=True):
        places[str(row.owner)][route.specialty or NOWHERE] += 1
    return tuple(Home(name, counts.total(), dict(counts.most_common())) for name, counts in places.items())


def _confusion(rows: Sequence[_Row], routes: Sequence[Route], names: Sequence[str]) -> Confusion:
    counts = Counter(
        (row.owner or UNKNOWN, route.specialty or NOWHERE) for row, route in zip(rows, routes, strict=True)
    )
    owners = {owner for owner, _ in counts}
    strangers = sorted(owners - {*names, UNKNOWN})  # what an operator calls a specialty that is not installed
    lines = (*names, *strangers, *([UNKNOWN] if UNKNOWN in owners else []))
    columns = (*names, NOWHERE)
    return Confusion(lines, columns, tuple(tuple(counts[row, column] for column in columns) for row in lines))
