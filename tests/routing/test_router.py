"""The router: questions in, routes out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from hlo.records import Route
from hlo.routing import bank
from hlo.routing.bank import Group
from hlo.routing.decision import Scale, decide
from hlo.testing import HashingEncoder
from tests.conftest import EXAMPLES, SCALE, THRESHOLDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tests.conftest import MakeParts, Parts

QUESTIONS = {
    "My heart and my chest hurt": "cardiology",
    "A lump, is it a tumor or cancer?": "oncology",
    "A seizure and a headache": "neurology",
    "Where do I park?": None,
}


async def test_questions_go_where_they_belong(parts: Parts) -> None:
    """A question goes to the specialty whose examples it resembles, and to none when it resembles no one's."""
    for question, specialty in QUESTIONS.items():
        route = await parts.router.route(question)
        assert route.specialty == specialty
        assert {one.specialty for one in route.scores} == {"cardiology", "neurology", "oncology"}


async def test_many_questions_keep_their_order(parts: Parts) -> None:
    """Routes come in the order of their questions."""
    routes = await parts.router.route_many(list(QUESTIONS))
    assert [route.specialty for route in routes] == list(QUESTIONS.values())


async def test_no_questions_have_no_routes(parts: Parts) -> None:
    """No questions give no routes, and that is no error."""
    assert await parts.router.route_many([]) == ()


async def test_equal_leads_are_ambiguous(parts: Parts) -> None:
    """A question that resembles two specialties alike is ambiguous, and names the better one."""
    route = await parts.router.route("valve numb")
    assert (route.status, route.specialty) == ("ambiguous", "neurology")
    assert [one.specialty for one in route.scores] == ["neurology", "cardiology", "oncology"]
    assert route.candidates == ("neurology", "cardiology")


async def test_a_comparison_gives_the_route(parts: Parts) -> None:
    """What the router compares can be decided anew, and gives the routes that it gave."""
    compared = await parts.router.compare(list(QUESTIONS))
    routes = await parts.router.route_many(list(QUESTIONS))
    assert tuple(decide(one, SCALE, THRESHOLDS) for one in compared) == routes


async def test_the_background_takes_questions(make_parts: MakeParts) -> None:
    """A question that is nearer to the background than to any specialty is out of scope, and no other."""
    behind = bank.embedded("everyday", ("which pulse soup with chickpeas",), HashingEncoder())
    without, with_it = make_parts(), make_parts(background=[behind])
    asked = "pulse soup with chickpeas"
    assert (await without.router.route(asked)).specialty == "cardiology"
    route = await with_it.router.route(asked)
    assert (route.status, route.specialty) == ("out_of_scope", None)
    assert route.out_of_scope + sum(one.probability for one in route.scores) == pytest.approx(1)
    assert (await with_it.router.route("heart pulse")).specialty == "cardiology"


def follow_ups() -> Group:
    return bank.embedded("follow_ups", ("and at night", "is it dangerous", "thanks for that"), HashingEncoder())


HEART, BRAIN, PARKING, NIGHT = "heart chest pain", "brain seizure headache", "Where do I park?", "and at night?"


@pytest.mark.parametrize(
    ("earlier", "question", "specialty"),
    [
        ((), NIGHT, None),
        ((HEART,), NIGHT, "cardiology"),
        ((BRAIN,), NIGHT, "neurology"),
        ((HEART, NIGHT), "is it dangerous?", "cardiology"),
        ((HEART,), BRAIN, "neurology"),
        ((HEART, BRAIN), NIGHT, "neurology"),
        ((HEART, NIGHT, BRAIN), NIGHT, "neurology"),
        ((HEART,), PARKING, None),
        ((HEART, PARKING), NIGHT, None),
        ((HEART, PARKING), BRAIN, "neurology"),
        ((PARKING,), NIGHT, None),
        ((PARKING,), HEART, "cardiology"),
    ],
)
async def test_conversations(
    earlier: Sequence[str], question: str, specialty: str | None, make_parts: MakeParts
) -> None:
    """A follow-up stays with the turn before, a new topic leaves, and what is out of scope ends a topic."""
    router = make_parts(follow_ups=follow_ups(), scale=Scale(floor=0.33)).router
    route = await router.route(question, earlier)
    assert route.specialty == specialty


async def test_without_follow_ups_a_conversation_goes_on(make_parts: MakeParts) -> None:
    """Where no follow-ups are known, a turn that leans to no specialty more than to the one before stays there."""
    router = make_parts().router
    assert (await router.route("valve numb")).candidates == ("neurology", "cardiology")
    assert (await router.route("valve numb", [HEART])).specialty == "cardiology"
    assert (await router.route("valve numb", [BRAIN])).specialty == "neurology"
    assert (await router.route(BRAIN, [HEART])).specialty == "neurology"


async def test_one_turn_is_routed_as_ever(make_parts: MakeParts) -> None:
    """Without earlier turns a question is routed as it is among many, follow-ups or not."""
    router = make_parts(follow_ups=follow_ups()).router
    many = await router.route_many(list(QUESTIONS))
    for alone, beside in zip([await router.route(one) for one in QUESTIONS], many, strict=True):
        assert (alone.status, alone.specialty) == (beside.status, beside.specialty)
        assert alone.out_of_scope == pytest.approx(beside.out_of_scope, abs=1e-5)
        assert [one.score for one in alone.scores] == pytest.approx([one.score for one in beside.scores], abs=1e-6)


class Counting(HashingEncoder):
    """An encoder that remembers what it encoded."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Remember, and encode."""
        self.seen.extend(questions)
        return super().encode(questions)


async def test_long_conversations_cost_no_more(make_parts: MakeParts) -> None:
    """Only the latest turns are looked at, in their order and before the question; what was long ago has no say."""
    encoder = Counting()
    router = make_parts(encoder=encoder, follow_ups=follow_ups()).router
    encoder.seen.clear()
    turns = [BRAIN, *(f"parking {number}" for number in range(20)), HEART]
    assert (await router.route(NIGHT, turns)).specialty == "cardiology"
    assert encoder.seen == [*turns[-8:], NIGHT]
    assert await router.route(NIGHT, [BRAIN, *[NIGHT] * 8]) == await router.route(NIGHT, [NIGHT] * 8)


async def test_the_router_tells_what_it_was_made_of(make_parts: MakeParts) -> None:
    """Digests and words of all groups are told by name, so that a calibration can tell its own router."""
    behind = bank.embedded("everyday", ("bread",), HashingEncoder())
    router, alone = make_parts(background=[behind]).router, make_parts().router
    assert router.texts == EXAMPLES | {"everyday": ("bread",)}
    assert router.digests == {
        name: hashlib.sha256("\0".join(texts).encode()).hexdigest() for name, texts in EXAMPLES.items()
    }
    assert router.background_digest != alone.background_digest
    assert router.digests == alone.digests


async def test_no_specialties_take_nothing(make_parts: MakeParts) -> None:
    """A router without specialties finds everything out of scope, in conversations too."""
    parts = make_parts(follow_ups=follow_ups())
    empty = type(parts.router)(parts.encoder, bank.Bank.of([], dimension=256), SCALE, THRESHOLDS, follow_ups())
    assert await empty.route(NIGHT, [HEART]) == Route("out_of_scope", None, out_of_scope=1.0)
