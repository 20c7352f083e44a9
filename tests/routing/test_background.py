"""The background: what no specialty answers, and which part of it the installed specialties cover."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hlo import plugins
from hlo.routing import background
from hlo.routing.background import Background
from hlo.routing.bank import Bank, Group
from hlo.testing import HashingEncoder
from hlo.testing.catchment import all_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
FILES = ("background.toml", "follow_ups.toml")


def folded(text: str) -> str:
    """A text without what makes no other text of it: case, space and the marks at its end."""
    return " ".join(text.casefold().replace("\u2019", "'").split()).rstrip(".?! ")


def groups() -> dict[str, list[str]]:
    """Every text of both files, by the name of its group."""
    found: dict[str, list[str]] = {}
    for file in FILES:
        text = resources.files("hlo.routing").joinpath(file).read_text(encoding="utf-8")
        found |= tomllib.loads(text)
    return found


def measured() -> list[tuple[str, str]]:
    """Every question in the files that routing is measured with, and the file's name."""
    found = []
    for file in sorted(DATA.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found += [(file.name, text) for text in row.get("turns", [row.get("question")])]
    return found


def test_the_files_hold_groups_of_texts() -> None:
    """Both files are groups of texts that say something, in groups large enough to have a share of."""
    found = groups()
    assert all(isinstance(text, str) and text.strip() == text != "" for texts in found.values() for text in texts)
    assert all(len(texts) >= 20 for texts in found.values())
    assert len([name for name in found if name.startswith("everyday")]) >= 10
    assert len([name for name in found if not name.startswith("everyday")]) >= 20
    assert {"dermatology", "dentistry", "psychiatry"} <= found.keys()


def test_no_text_stands_there_twice() -> None:
    """No text is there twice, in one group or in two."""
    counts = Counter(folded(text) for texts in groups().values() for text in texts)
    assert [text for text, count in counts.items() if count > 1] == []


def test_no_text_is_a_specialtys_example() -> None:
    """What an installed specialty answers is no background: no text is an example of one."""
    offers = plugins.discover(plugins.installed()).offers
    examples = {folded(text) for offer in offers for one in offer.specialties for text in all_examples(one)}
    assert len(examples) > 1000
    assert [text for texts in groups().values() for text in texts if folded(text) in examples] == []


def test_no_text_is_measured_with() -> None:
    """Nothing that routing is measured with is there to be looked up: that would measure memory."""
    asked = measured()
    assert len(asked) > 500
    assert len({name for name, _ in asked}) >= 5
    own = {folded(text) for texts in groups().values() for text in texts}
    assert [(name, text) for name, text in asked if folded(text) in own] == []


def test_all_of_it_is_loaded() -> None:
    """Every text is embedded, in the group of its name; the follow-ups are apart."""
    encoder, wanted = HashingEncoder(), groups()
    found = Background.load(encoder)
    assert found.follow_ups is not None
    follow_ups = wanted.pop(found.follow_ups.name)
    assert found.follow_ups.texts == tuple(follow_ups)
    assert {group.name: list(group.texts) for group in found.groups} == wanted
    for group in (found.groups[0], found.groups[-1], found.follow_ups):
        np.testing.assert_array_equal(group.examples, encoder.encode(group.texts))


MEDICINE = 5  # the axis that all fields have in common, so that each is nearer to the others than to what is strange


def around(axes: int | tuple[int, ...], count: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors near some axes."""
    drawn = np.random.default_rng(seed).normal(scale=0.05, size=(count, 8))
    drawn[:, axes] += 1
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def grouped(name: str, *parts: NDArray[np.float32]) -> Group:
    examples = np.concatenate(parts)
    mean = examples.mean(axis=0)
    return Group(name, examples, np.asarray(mean / np.linalg.norm(mean), dtype=np.float32))


FIELDS = (
    grouped("skin", around((0, MEDICINE), 20, 1)),
    grouped("teeth", around((1, 6, MEDICINE), 20, 2)),
    grouped("feet", around((2, 6, MEDICINE), 20, 3)),
    grouped("everyday_01", around(3, 20, 4)),
    grouped("everyday_02", around(4, 20, 5)),
)


def left(*specialties: Group, fields: Sequence[Group] = FIELDS) -> list[str]:
    return [group.name for group in background.uncovered(Background(tuple(fields)), specialties)]


def test_without_specialties_all_is_background() -> None:
    """Where nothing is installed, nothing is covered."""
    assert left() == [group.name for group in FIELDS]


def test_a_strange_specialty_covers_nothing() -> None:
    """A specialty that is near to no field leaves all of them."""
    assert left(grouped("hearts", around(7, 10, 9))) == [group.name for group in FIELDS]


def test_a_field_of_the_same_name_is_covered() -> None:
    """A field is left out when a specialty has its name, however far its examples are."""
    assert left(grouped("teeth", around(7, 10, 9))) == ["skin", "feet", "everyday_01", "everyday_02"]


def test_a_field_that_a_specialty_is_near_to_is_covered() -> None:
    """A field is left out when a specialty of another name is what is nearest to it, and the other fields stay."""
    assert left(grouped("dermatologie", around((0, MEDICINE), 10, 9))) == [
        "teeth",
        "feet",
        "everyday_01",
        "everyday_02",
    ]


def test_everyday_matters_are_never_covered() -> None:
    """No specialty, be it as near as can be or of that name, takes everyday matters out of the background."""
    near, named = grouped("bakery", around(3, 10, 9)), grouped("everyday_03", around(4, 10, 9))
    assert left(near, named) == [group.name for group in FIELDS]


@pytest.mark.parametrize(("taken", "covered"), [(0, False), (3, False), (4, True), (20, True)])
def test_a_fifth_of_its_questions_covers_a_field(taken: int, covered: bool) -> None:
    """A field is covered from the share on of a fifth: here so many of its twenty questions are near the specialty."""
    field = grouped("field", around(0, taken, 1), around(1, 20 - taken, 2))
    rivals = [grouped(name, around(1, 20, seed)) for seed, name in ((3, "one"), (4, "two"))]
    found = left(grouped("new", around(0, 10, 5)), fields=[field, *rivals])
    assert found == ([] if covered else ["field"]) + ["one", "two"]


def test_several_specialties_share_no_field_out() -> None:
    """Each specialty is counted alone: shares too small for one do not become large by adding them up."""
    field = grouped("field", around(0, 3, 1), around(5, 3, 2), around(1, 14, 3))
    rival = grouped("rival", around(1, 20, 4))
    both = (grouped("one", around(0, 10, 5)), grouped("two", around(5, 10, 6)))
    assert left(*both, fields=[field, rival]) == ["field", "rival"]


def test_what_is_left_keeps_questions_out() -> None:
    """A question about a field is nearer to the background until a specialty covers that field."""
    asked = around((0, MEDICINE), 1, 77)
    other, new = grouped("hearts", around(7, 10, 8)), grouped("dermatologie", around((0, MEDICINE), 10, 9))
    alone, both = (
        Bank.of(some, background.uncovered(Background(FIELDS), some), dimension=8).compare(asked)[0]
        for some in ((other,), (other, new))
    )
    assert alone.background is not None
    assert both.background is not None
    assert alone.background > alone.scores[0].score
    assert both.background < both.scores[0].score
