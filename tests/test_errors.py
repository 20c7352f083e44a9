"""The errors."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from hlo import errors
from hlo.errors import HLOError, InvalidRequest

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


def drawn() -> dict[str, tuple[str | None, str]]:
    """Each error in the module docstring's tree: its parent there, and what is said of it."""
    found: dict[str, tuple[str | None, str]] = {"HLOError": (None, "")}
    stack = [(-1, "HLOError")]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│ ]*)[├└]── (\w+)\s+(.+)", line)
        if match:
            depth = len(match[1]) // 4
            while stack[-1][0] >= depth:
                stack.pop()
            found[match[2]] = (stack[-1][1], match[3])
            stack.append((depth, match[2]))
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The module docstring draws every error under its real parent."""
    real = {one.__name__: one.__mro__[1].__name__ for one in ALL}
    assert {name: parent or "Exception" for name, (parent, _) in drawn().items()} == real


@pytest.mark.parametrize("error", [one for one in ALL if one is not HLOError], ids=lambda one: str(one.__name__))
def test_docstrings_say_when(error: type[HLOError]) -> None:
    """An error's docstring begins with the sentence that the tree gives for it, without what is in brackets there."""
    sentence = re.sub(r" \(.*\)$", "", drawn()[error.__name__][1])
    assert (error.__doc__ or "").lower().startswith(sentence.lower())


def test_str_holds_message_and_remedy() -> None:
    """An error as text is its message and its remedy."""
    assert str(HLOError("It broke.", remedy="Mend it.")) == "It broke. Mend it."
    assert str(HLOError("It broke.")) == "It broke."


def test_field_is_kept() -> None:
    """An invalid request knows the field that breaks a rule."""
    error = InvalidRequest("It is empty.", field="$.question", remedy="Ask.")
    assert (error.message, error.field, error.remedy) == ("It is empty.", "$.question", "Ask.")


@pytest.mark.parametrize("error", ALL, ids=lambda one: str(one.__name__))
def test_errors_travel_between_processes(error: type[HLOError]) -> None:
    """An error that was pickled says what it said, with its remedy and its field."""
    field = {"field": "$.question"} if issubclass(error, InvalidRequest) else {}
    made = error("Something is wrong.", remedy="Mend it.", **field)
    found = pickle.loads(pickle.dumps(made))  # noqa: S301 - what was made a moment ago
    assert (type(found), str(found), vars(found)) == (error, str(made), vars(made))
