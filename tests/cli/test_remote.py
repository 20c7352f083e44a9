"""A running server, as commands see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hlo.cli.remote import connection
from hlo.errors import HLOError

if TYPE_CHECKING:
    from tests.cli.conftest import Stub


def test_post_returns_what_came_back(stub: Stub) -> None:
    """What the server answers is returned decoded."""
    stub.gives({"a": ["ä"]})
    with connection(stub.url) as server:
        assert server.post("/x", {"b": 1}) == {"a": ["ä"]}
    assert stub.asked == [("/x", {"b": 1})]


@pytest.mark.parametrize("remedy", [{}, {"remedy": "Wait."}])
def test_a_problem_is_an_error(remedy: dict[str, str], stub: Stub) -> None:
    """A problem is raised as an error with its detail, and its remedy where it has one."""
    stub.gives({"detail": "It broke."} | remedy, 500, "application/problem+json")
    with pytest.raises(HLOError) as caught, connection(stub.url) as server:
        server.post("/x", {})
    assert (caught.value.message, caught.value.remedy) == ("It broke.", remedy.get("remedy", ""))


def test_a_stream_is_read_line_by_line(stub: Stub) -> None:
    """The lines of a stream come one by one."""
    stub.gives("event: a\ndata: 1\n\nevent: b\n", 200, "text/event-stream")
    with connection(stub.url) as server, server.post_stream("/x", {}) as lines:
        assert list(lines) == ["event: a", "data: 1", "", "event: b"]
