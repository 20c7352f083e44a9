"""The bank: how close a question comes to each specialty, and exactly so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo.errors import PluginError
from hlo.records import Adapter, Embeddings, Score, Specialty
from hlo.routing import bank
from hlo.routing.bank import CONCENTRATION, SHORTLIST, Bank, Comparison, Group
from hlo.testing import HashingEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENCODER = HashingEncoder()


def specialty(name: str = "cardiology", **fields: Any) -> Specialty:
    return Specialty(name=name, title=name.title(), adapter=Adapter("x"), **fields)


def vectors(rows: int, dimension: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, dimension))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def grouped(name: str, examples: NDArray[np.float32]) -> Group:
    mean = examples.mean(axis=0)
    return Group(name, examples, np.asarray(mean / np.linalg.norm(mean), dtype=np.float32))


def direct(question: NDArray[np.float32], examples: NDArray[np.float32]) -> float:
    """The score by its definition, in double precision."""
    cosines = examples.astype(np.float64) @ question.astype(np.float64)
    return float(np.log(np.mean(np.exp(CONCENTRATION * cosines))) / CONCENTRATION)


def told(found: Comparison) -> dict[str, float]:
    return {one.specialty: one.score for one in found.scores}


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=SHORTLIST),
    behind=st.lists(st.integers(1, 5), max_size=4),
    questions=st.integers(1, 5),
    dimension=st.sampled_from([2, 3, 16, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_scores_are_the_log_of_the_mean_density(
    sizes: list[int], behind: list[int], questions: int, dimension: int, seed: int
) -> None:
    """Every score is log(mean(exp(K cosine))) / K over the group's examples; the background's densities are added."""
    drawn = vectors(sum(sizes) + sum(behind) + questions, dimension, seed)
    parts = np.split(drawn, np.cumsum([*sizes, *behind]))
    groups = [grouped(f"g{number:02}", part) for number, part in enumerate(parts[:-1])]
    inside, outside = groups[: len(sizes)], groups[len(sizes) :]
    found = Bank.of(inside, outside, dimension=dimension).compare(parts[-1])
    assert len(found) == questions
    for question, one in zip(parts[-1], found, strict=True):
        wanted = {group.name: direct(question, group.examples) for group in inside}
        assert told(one) == pytest.approx(wanted, abs=1e-5)
        assert one.scores == bank.ranked(one.scores)
        if outside:
            densities = sum(np.exp(CONCENTRATION * direct(question, group.examples)) for group in outside)
            assert one.background == pytest.approx(float(np.log(densities) / CONCENTRATION), abs=1e-5)
        else:
            assert one.background is None


@pytest.mark.parametrize("count", [12, 40, 120])  # few: shortlists are alike; many: each question has its own
@pytest.mark.parametrize("questions", [0, 1, 31, 32, 33, 64, 65])
def test_a_batch_gives_what_its_questions_give_alone(questions: int, count: int) -> None:
    """Questions that are compared together score as each does alone, on both sides of every border between chunks."""
    groups = [grouped(f"g{number:03}", vectors(number % 5 + 1, 24, number)) for number in range(count)]
    made = Bank.of(groups[count // 4 :], groups[: count // 4], dimension=24)
    asked = vectors(questions, 24, 99) if questions else np.zeros((0, 24), dtype=np.float32)
    together = made.compare(asked)
    assert len(together) == questions
    for question, one in zip(asked, together, strict=True):
        (alone,) = made.compare(question[None])
        assert [score.specialty for score in one.scores] == [score.specialty for score in alone.scores]
        assert told(one) == pytest.approx(told(alone), abs=1e-6)
        assert one.background == pytest.approx(alone.background, abs=1e-6)


def around(center: NDArray[np.float32], rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors about as near to a center as questions of one specialty are to its mean."""
    drawn = center + vectors(rows, len(center), seed)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def many() -> Bank:
    """A bank that is compared in fixed point."""
    centers = vectors(18, 384, 1)
    inside = [grouped(f"s{number}", around(centers[number], 150, number)) for number in range(12)]
    outside = [grouped(f"b{number}", around(centers[number], 60, 100 + number)) for number in range(12, 18)]
    made = Bank.of(inside, outside, dimension=384)
    assert made.quick is not None
    return made


def test_many_examples_are_compared_in_fixed_point() -> None:
    """With thousands of examples, scores are those of the definition, the same alone and among others.

    They are right to 1e-4 where they come close to the best, and else to 2e-3.
    """
    made = many()
    apart = [around(made.means[number], 2, 1000 + number) for number in range(18)]
    between = made.means[:11] + made.means[1:12]
    asked = np.concatenate([*apart, between / np.linalg.norm(between, axis=1, keepdims=True)])
    together = made.compare(asked)
    assert together == tuple(made.compare(question[None])[0] for question in asked)
    near = 0
    for question, found in zip(asked, together, strict=True):
        wanted = {one.name: direct(question, one.examples) for one in made.specialties}
        assert told(found) == pytest.approx(wanted, abs=2e-3)
        behind = np.exp([CONCENTRATION * direct(question, one.examples) for one in made.background]).sum()
        behind = np.log(behind) / CONCENTRATION
        assert found.background == pytest.approx(behind, abs=1e-3)
        best = max(*wanted.values(), behind)
        close = {name: score for name, score in wanted.items() if score > best - 0.05}
        assert {name: told(found)[name] for name in close} == pytest.approx(close, abs=1e-4)
        near += len(close) > 1
    assert near > 5, "no question was between two specialties"


def test_an_example_among_thousands_can_be_left_out() -> None:
    """A bank that has fixed point leaves it alone where examples are asked, and is as exact as others."""
    made = many()
    own = made.specialties[3].examples
    (alone,) = made.compare(own[:1], leave_out=True)
    assert told(alone)["s3"] == pytest.approx(direct(own[0], own[1:]), abs=1e-5)


def test_a_question_that_is_near_to_nothing_is_near_to_all_alike() -> None:
    """Where more examples are near than are compared exactly, scores are still those of the definition, to 6e-4."""
    away = vectors(1, 96, 6)
    whole = vectors(2400, 96, 5)
    whole -= (whole @ away.T) * away
    made = Bank.of([grouped("one", whole[:1200]), grouped("other", whole[1200:])], dimension=96)
    assert made.quick is not None
    (found,) = made.compare(away)
    assert told(found) == pytest.approx({one.name: direct(away[0], one.examples) for one in made.specialties}, abs=6e-4)


def test_examples_that_are_alike_and_not_near_are_as_good_as_their_rounding() -> None:
    """A specialty that comes close to the best with no example near is right to what rounding the question leaves."""
    question = vectors(1, 384, 7)[0]

    def at(cosine: float, rows: int, seed: int) -> NDArray[np.float32]:
        aside = vectors(rows, 384, seed)
        aside -= np.outer(aside @ question, question)
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        return np.asarray(cosine * question + np.sqrt(1 - cosine**2) * aside, dtype=np.float32)

    one = np.concatenate([at(0.9, 1, 1), at(0.3, 99, 2)])
    alike = np.repeat(at(0.69, 1, 3), 100, axis=0)
    made = Bank.of([grouped("one", one), grouped("alike", alike), grouped("far", at(0, 1900, 4))], dimension=384)
    assert made.quick is not None
    (found,) = made.compare(question[None])
    wanted = {one.name: direct(question, one.examples) for one in made.specialties}
    assert wanted["one"] - wanted["alike"] < 0.05
    assert told(found) == pytest.approx(wanted, abs=1.5e-3)
    assert told(found)["one"] == pytest.approx(wanted["one"], abs=1e-4)


def test_the_shortlist_is_the_nearest_means() -> None:
    """Of forty groups those with the nearest means are scored, each question's own sixteen, and exactly."""
    groups = [grouped(f"g{number:02}", vectors(number % 7 + 1, 32, number)) for number in range(40)]
    made = Bank.of(groups, dimension=32)
    asked = vectors(50, 32, 1000)
    lists = set()
    for question, one in zip(asked, made.compare(asked), strict=True):
        nearest = sorted(groups, key=lambda group: -float(question @ group.mean))[:16]
        assert told(one) == pytest.approx({group.name: direct(question, group.examples) for group in nearest}, abs=1e-5)
        lists.add(frozenset(told(one)))
    assert len(lists) > 1


def test_the_background_has_a_shortlist_of_its_own() -> None:
    """A background of many groups crowds no specialty out, and its own nearest sixteen count."""
    inside = [grouped(f"in{number}", vectors(3, 16, number)) for number in range(3)]
    outside = [grouped(f"out{number}", vectors(2, 16, 100 + number)) for number in range(40)]
    made = Bank.of(inside, outside, dimension=16)
    for question in vectors(5, 16, 7):
        (found,) = made.compare(question[None])
        assert set(told(found)) == {"in0", "in1", "in2"}
        nearest = sorted(outside, key=lambda group: -float(question @ group.mean))[:SHORTLIST]
        densities = sum(np.exp(CONCENTRATION * direct(question, group.examples)) for group in nearest)
        assert found.background == pytest.approx(float(np.log(densities) / CONCENTRATION), abs=1e-5)


def test_an_example_can_be_left_out() -> None:
    """With `leave_out`, a question that is an example counts as the others of its group do, and in no other group."""
    examples = vectors(6, 16, 3)
    made = Bank.of([grouped("a", examples[:4]), grouped("b", examples[4:])], dimension=16)
    (left,) = made.compare(examples[:1], leave_out=True)
    (kept,) = made.compare(examples[:1])
    assert told(left)["a"] == pytest.approx(direct(examples[0], examples[1:4]), abs=1e-5)
    assert told(kept)["a"] == pytest.approx(direct(examples[0], examples[:4]), abs=1e-5)
    assert told(left)["b"] == pytest.approx(told(kept)["b"], abs=1e-6)


def test_leaving_out_changes_nothing_for_a_strange_question() -> None:
    """A question that is no example scores the same, whether or not examples are left out."""
    made = Bank.of([grouped("a", vectors(4, 16, 1))], dimension=16)
    asked = vectors(3, 16, 2)
    assert made.compare(asked, leave_out=True) == made.compare(asked)


def test_a_group_without_its_only_example_is_far() -> None:
    """Where nothing of a group is left, its score is the least that there is, and no warning is given."""
    examples = vectors(2, 8, 5)
    made = Bank.of([grouped("only", examples[:1]), grouped("other", examples[1:])], dimension=8)
    (found,) = made.compare(examples[:1], leave_out=True)
    assert found.scores[-1] == Score("only", -1.0)


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_extreme_cosines_are_finite(scale: float) -> None:
    """The same and the opposite vector give 1 and -1, and nothing overflows."""
    one = vectors(1, 8, 1)
    (found,) = Bank.of([grouped("a", np.repeat(one, 3, axis=0))], dimension=8).compare(scale * one)
    assert found.scores[0].score == pytest.approx(scale, abs=1e-5)


def test_no_specialties_give_no_scores() -> None:
    """Without any specialty a question has no scores; the background, where there is one, is compared all the same."""
    asked = ENCODER.encode(["heart", "blood"])
    assert Bank.of([], dimension=256).compare(asked) == (Comparison(()), Comparison(()))
    behind = bank.embedded("everyday", ("heart",), ENCODER)
    first, second = Bank.of([], [behind], dimension=256).compare(asked)
    assert (first.scores, second.scores) == ((), ())
    assert first.background == pytest.approx(1, abs=1e-5)
    assert second.background == pytest.approx(0, abs=1e-5)


def test_equal_scores_go_by_name() -> None:
    """Of equal scores the first by name comes first, whatever the groups' order."""
    rows = ENCODER.encode(["heart"])
    (found,) = Bank.of([grouped(name, rows) for name in "bca"], dimension=256).compare(rows)
    assert [one.specialty for one in found.scores] == ["a", "b", "c"]


@given(
    scores=st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-1, 1)), unique_by=lambda pair: pair[0]),
    data=st.data(),
)
def test_ranking_knows_no_order(scores: list[tuple[str, float]], data: st.DataObject) -> None:
    """The same scores in another order are ranked the same, best first."""
    given_scores = [Score(*pair) for pair in scores]
    found = bank.ranked(data.draw(st.permutations(given_scores)))
    assert found == bank.ranked(given_scores)
    assert [one.score for one in found] == sorted((one.score for one in given_scores), reverse=True)


def test_a_group_holds_words_vectors_and_their_mean() -> None:
    """A group has a vector for each example, all parts' in order; the unit mean; the words, and a digest of them."""
    made = bank.group(specialty(examples={"p": ("heart pain", "blood"), "none": (), "c": ("heart",)}), ENCODER)
    assert made.texts == ("heart pain", "blood", "heart")
    assert made.examples.dtype == made.mean.dtype == np.float32
    np.testing.assert_array_equal(made.examples, ENCODER.encode(made.texts))
    mean = ENCODER.encode(made.texts).mean(axis=0)
    np.testing.assert_allclose(made.mean, mean / np.linalg.norm(mean), atol=1e-6)
    assert made.digest == hashlib.sha256(b"heart pain\0blood\0heart").hexdigest()


@pytest.mark.parametrize(
    "others", [("heart", "pain"), ("heart pain ",), ("pain", "heart"), ("heart",), ("heart", "pain", "pain")]
)
def test_the_digest_is_of_these_words(others: tuple[str, ...]) -> None:
    """Other words, or the same in other pieces, have another digest; the same have the same."""
    found = bank.embedded("a", ("heart pain",), ENCODER).digest
    assert bank.embedded("b", ("heart pain",), ENCODER).digest == found
    assert bank.embedded("a", others, ENCODER).digest != found


def test_embeddings_are_as_good_as_examples() -> None:
    """Embeddings made by the encoder give the examples' vectors, also when not of length 1, and no words."""
    examples = ("heart pain", "blood pressure")
    by_examples = bank.group(specialty(examples={"p": examples}), ENCODER)
    embeddings = Embeddings(ENCODER.fingerprint, {one: (3 * ENCODER.encode([one])).tolist() for one in examples})
    made = bank.group(specialty(embeddings=embeddings), ENCODER)
    np.testing.assert_allclose(made.examples, by_examples.examples, atol=1e-6)
    np.testing.assert_allclose(made.mean, by_examples.mean, atol=1e-6)
    assert made.texts == ()
    assert made.digest not in ("", by_examples.digest)


def test_embeddings_come_before_examples() -> None:
    """Where a specialty gives both, its embeddings count."""
    embeddings = Embeddings(ENCODER.fingerprint, {"p": ENCODER.encode(["blood"]).tolist()})
    made = bank.group(specialty(embeddings=embeddings, examples={"p": ("heart",)}), ENCODER)
    np.testing.assert_allclose(made.examples, ENCODER.encode(["blood"]), atol=1e-6)


def test_another_encoders_embeddings_are_refused() -> None:
    """Embeddings of another encoder are refused with both fingerprints: their distances mean nothing."""
    embeddings = Embeddings("minilm", {"p": ENCODER.encode(["blood"]).tolist()})
    foreign = specialty(embeddings=embeddings, examples={"p": ("heart",)})
    with pytest.raises(PluginError) as caught:
        bank.group(foreign, ENCODER)
    assert "`minilm`" in caught.value.message
    assert "`hashing-256`" in caught.value.message
    assert caught.value.remedy
    good = specialty("good", embeddings=Embeddings(ENCODER.fingerprint, embeddings.parts))
    found = bank.refuse_embeddings([foreign, good, specialty("plain", examples={"p": ("x",)})], ENCODER)
    assert {name: str(error) for name, error in found.items()} == {"cardiology": str(caught.value)}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[]],
        [[1.0] * 255],
        [[1.0] * 257],
        [[float("nan")] * 256],
        [[float("inf")] * 256],
        [[1.0] * 256, [1.0]],
    ],
    ids=["no rows", "no columns", "short", "long", "nan", "inf", "ragged"],
)
def test_misshapen_embeddings_are_refused(rows: Sequence[Sequence[float]]) -> None:
    """Embeddings of another shape, or with values that are no numbers, are refused by part and specialty."""
    with pytest.raises(PluginError, match="`p` of `cardiology`"):
        bank.group(specialty(embeddings=Embeddings(ENCODER.fingerprint, {"p": rows})), ENCODER)


@pytest.mark.parametrize("fields", [{}, {"examples": {"p": ()}}, {"embeddings": Embeddings("hashing-256", {})}])
def test_a_specialty_without_examples_is_refused(fields: dict[str, Any]) -> None:
    """A specialty to which no question could be routed is refused."""
    with pytest.raises(PluginError, match="`cardiology` has no routing examples"):
        bank.group(specialty(**fields), ENCODER)


def test_a_bank_keeps_nothing_twice() -> None:
    """The groups of a bank have the names, words and digests that they had, and are views of the bank's vectors."""
    groups = [bank.embedded(name, (name, f"{name} pain"), ENCODER) for name in ("heart", "skin", "bread")]
    made = Bank.of(groups[:2], groups[2:], dimension=256)
    assert made.names == ("heart", "skin")
    for before, after in zip(groups, (*made.specialties, *made.background), strict=True):
        assert (after.name, after.texts, after.digest) == (before.name, before.texts, before.digest)
        np.testing.assert_array_equal(after.examples, before.examples)
        assert np.shares_memory(after.examples, made.examples)


def test_only_keeps_the_order() -> None:
    """Leaving specialties out leaves the others as they were, in their order; names that nobody has are none."""
    groups = [bank.embedded(name, (name,), ENCODER) for name in "abc"]
    assert bank.only(groups, {"c", "a", "unknown"}) == (groups[0], groups[2])
