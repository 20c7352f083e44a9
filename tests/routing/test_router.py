"""The router: questions in, routes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Parts

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
