"""The catchment audit, with numbers that can be checked by hand: this encoder counts words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hlo.errors import PluginError, SettingsError
from hlo.records import Adapter, Embeddings, Specialty
from hlo.routing.background import Background
from hlo.routing.bank import CONCENTRATION, embedded
from hlo.routing.decision import Thresholds
from hlo.routing.evaluation import NOWHERE
from hlo.testing import HashingEncoder
from hlo.testing.catchment import UNKNOWN, Asked, Audit, audit, read_questions

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLDS = Thresholds(min_in_scope=0.15, min_probability=0.7)


def specialty(name: str, *examples: str, embeddings: Embeddings | None = None) -> Specialty:
    parts = {"patients": examples} if examples else {}
    return Specialty(name, name.title(), Adapter(name), examples=parts, embeddings=embeddings)


# A cosine is the number of words in common, divided by the root of the product of both numbers of words. What shares
# no word has the score 0, which is out of scope.
CARDIOLOGY = specialty("cardiology", "heart pain", "heart beat")
GERIATRICS = specialty("geriatrics", "fall old", "old slow", "knee joint old")
JOINTS = specialty("joints", "knee pain", "knee joint", "knee hip joint")


def near(*cosines: float) -> float:
    """The score of a specialty whose examples have these cosines."""
    return math.log(sum(math.exp(CONCENTRATION * one) for one in cosines) / len(cosines)) / CONCENTRATION


def joints(*questions: Asked) -> Audit:
    return audit([JOINTS], [CARDIOLOGY, GERIATRICS], HashingEncoder(), THRESHOLDS, questions, others=False)


def test_examples_that_move() -> None:
    """An example that comes closer to the new specialty than to its own moves, and is told with both scores."""
    found = joints()
    (moved,) = found.moved
    assert (moved.question, moved.owner, moved.given) == ("knee joint old", "geriatrics", False)
    assert (moved.before, moved.after) == ("geriatrics", "joints")
    assert moved.score_before == pytest.approx(1 / 6**0.5)  # itself left out: the two others, by `old`
    assert moved.score_after == pytest.approx(near(1 / 6**0.5, 2 / 6**0.5, 2 / 3))
    assert moved.change == pytest.approx(moved.score_after - moved.score_before)
    assert {one.specialty: (one.before, one.lost) for one in found.catchments} == {
        "geriatrics": (3, 1),
        "cardiology": (2, 0),
        NOWHERE: (0, 0),
    }
    assert found.catchments[0].share == pytest.approx(1 / 3)
    assert found.catchments[-1].share == 0
    assert found.questions == 8


def test_questions_of_the_operator() -> None:
    """A question that belongs to the new specialty is nobody's loss, and one of which nobody said so counts apart."""
    found = joints(
        Asked("knee pain pain", "joints"),  # before, cardiology is nearest by 2/√10; after, joints by 3/√10
        Asked("pain pain knee"),
        Asked("knee heart"),  # to both of cardiology's 1/2, to joints' 1/2, 1/2 and 1/√6: hardly less
    )
    assert [(one.question, one.owner, one.before, one.after) for one in found.moved if one.given] == [
        ("knee pain pain", "joints", "cardiology", "joints"),
        ("pain pain knee", None, "cardiology", "joints"),
    ]
    by_name = {one.specialty: one for one in found.catchments}
    assert (by_name["cardiology"].before, by_name["cardiology"].lost) == (2, 0)
    assert (by_name["cardiology"].given, by_name["cardiology"].given_lost) == (2, 1)
    assert found.unsettled == 1
    assert found.given == 3


def test_out_of_scope_questions_can_move() -> None:
    """A question that nobody took before is told as moved from no specialty."""
    asked = [Asked("joint stiff"), Asked("bread oven")]
    found = audit([JOINTS], [CARDIOLOGY], HashingEncoder(), THRESHOLDS, asked, others=False)
    (moved,) = found.moved
    assert (moved.question, moved.owner, moved.before, moved.after) == ("joint stiff", None, None, "joints")
    assert moved.score_before == pytest.approx(0, abs=1e-6)
    assert moved.score_after == pytest.approx(near(0, 1 / 2, 1 / 6**0.5))
    (nowhere,) = [one for one in found.catchments if one.specialty == NOWHERE]
    assert (nowhere.given, nowhere.given_lost) == (2, 1)


def test_where_its_own_examples_go() -> None:
    """The new specialty's own examples are routed with it there, and all are counted."""
    rival = specialty("rival", "knee pain back", "knee pain hip")
    (home,) = audit([JOINTS], [rival], HashingEncoder(), THRESHOLDS, others=False).homes
    assert (home.specialty, home.examples, home.home) == ("joints", 3, 2)
    assert dict(home.places) == {"joints": 2, "rival": 1}
    assert home.share == pytest.approx(2 / 3)


def test_an_example_does_not_vouch_for_itself() -> None:
    """An example is compared with the others alone: where it resembles none of them, it does not come home."""
    lonely = specialty("lonely", "one two", "two three", "four five")
    (home,) = audit([lonely], [], HashingEncoder(), THRESHOLDS, others=False).homes
    assert dict(home.places) == {"lonely": 2, NOWHERE: 1}


@pytest.mark.parametrize(("others", "lost"), [(True, 0), (False, 1)])
def test_the_background_keeps_questions(others: bool, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that is nearer to the background than to the new specialty stays out of scope, if that is compared."""
    behind = Background((embedded("everyday", ("bread oven hot",), HashingEncoder()),))
    monkeypatch.setattr(Background, "load", lambda *_: behind)
    thief = specialty("thief", "bread knee", "oven knee")
    found = audit([thief], [CARDIOLOGY], HashingEncoder(), THRESHOLDS, [Asked("bread oven")], others=others)
    (nowhere,) = [one for one in found.catchments if one.specialty == NOWHERE]
    assert (nowhere.given, nowhere.given_lost) == (1, lost)


def test_the_confusion_matrix_counts_every_question() -> None:
    """Rows say whose a question is, columns where it goes; strangers' names and unlabelled questions have rows too."""
    found = joints(Asked("heart beat"), Asked("bread", "bakery"))
    table = found.confusion
    assert table.rows == ("cardiology", "geriatrics", "joints", "bakery", UNKNOWN)
    assert table.columns == ("cardiology", "geriatrics", "joints", NOWHERE)
    assert table.counts == ((2, 0, 0, 0), (0, 2, 1, 0), (0, 0, 3, 0), (0, 0, 0, 1), (1, 0, 0, 0))
    assert sum(map(sum, table.counts)) == found.questions == 10


@pytest.mark.parametrize("others", [True, False])
def test_each_question_is_embedded_once(others: bool) -> None:
    """No question is encoded twice, be it example and question, of two specialties, or of the background."""

    class Counting(HashingEncoder):
        seen: list[str] = []  # noqa: RUF012 - one test's own

        def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
            self.seen.extend(questions)
            return super().encode(questions)

    encoder, asked = Counting(), [Asked("heart pain"), Asked("new")]
    encoder.seen.clear()
    audit([JOINTS], [CARDIOLOGY, GERIATRICS], encoder, THRESHOLDS, asked, others=others)
    own = {text for one in (JOINTS, CARDIOLOGY, GERIATRICS) for part in one.examples.values() for text in part}
    assert len(encoder.seen) == len(set(encoder.seen))
    assert own | {"new"} <= set(encoder.seen)
    assert (set(encoder.seen) == own | {"new"}) is not others


def test_embeddings() -> None:
    """Embeddings without words are audited too; those of another encoder are left out, or refused if they are new."""
    encoder = HashingEncoder()
    rows = encoder.encode(["hip joint", "hip"]).tolist()
    known = specialty("hips", embeddings=Embeddings(encoder.fingerprint, {"patients": rows}))
    foreign = specialty("foreign", embeddings=Embeddings("other", {"patients": rows}))
    empty, hollow = specialty("empty"), specialty("hollow", embeddings=Embeddings(encoder.fingerprint, {}))
    found = audit([JOINTS], [known, foreign, hollow, empty], encoder, THRESHOLDS, others=False)
    assert found.left_out == ("empty", "foreign", "hollow")
    assert {one.specialty: one.before for one in found.catchments} == {"hips": 2, NOWHERE: 0}
    assert found.questions == 5
    with pytest.raises(PluginError, match="made by the encoder `other`"):
        audit([foreign], [known], encoder, THRESHOLDS, others=False)


def test_alone() -> None:
    """With nothing installed, nothing moves and everything is at home."""
    found = audit([JOINTS], [], HashingEncoder(), THRESHOLDS, others=False)
    assert (found.moved, found.homes[0].share) == ((), 1.0)


def test_questions_in_lines(tmp_path: Path) -> None:
    """A text file has one question a line; empty lines are none, and other bytes are no trouble but UTF-8."""
    file = tmp_path / "questions.txt"
    file.write_text("\ufeffIs it my heart?\n\n  Or my knee? \n", encoding="utf-8")
    assert read_questions(file) == (Asked("Is it my heart?"), Asked("Or my knee?"))


def test_questions_in_json(tmp_path: Path) -> None:
    """A `.jsonl` file may say whose a question is, and may say more than that."""
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a", "specialty": "joints", "x": 1}\r\n{"question": "b\u2028c"}\n', encoding="utf-8")
    assert read_questions(file) == (Asked("a", "joints"), Asked("b\u2028c"))


@pytest.mark.parametrize(
    "line", ["my secret", '{"question": 3}', '{"q": "my secret"}', '["my secret"]', '{"question": ""}']
)
def test_questions_that_are_none(line: str, tmp_path: Path) -> None:
    """A line that is no question is named by its number, and its words are not repeated."""
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"question": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="Line 2 of") as caught:
        read_questions(file)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that can not be read is named."""
    with pytest.raises(SettingsError, match="nowhere"):
        read_questions(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_questions(tmp_path / "latin")
