"""The log's lines, for people and for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

import pytest

from hlo import logs
from hlo.errors import EngineDead, InvalidRequest
from hlo.testing import EchoEngine
from tests.test_pipeline import HEART, ask

if TYPE_CHECKING:
    from tests.conftest import MakeParts


def record(message: str, *arguments: object, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("hlo", logging.WARNING, "file.py", 1, message, arguments, None)
    made.__dict__.update(logs.fields(**values))
    return made


def test_a_line_for_people_ends_in_its_fields() -> None:
    """On a console the fields follow the message; without any the line is as it was."""
    console = logs.formatter("console")
    assert console.format(record("%s is late", "it", trace_id="7f", ms=2.5)).endswith(
        " WARNING hlo: it is late trace_id=7f ms=2.5"
    )
    assert console.format(record("it is late")).endswith("WARNING hlo: it is late")


def test_a_line_for_machines_is_one_object() -> None:
    """As JSON a line is one object with time, level, logger, message and fields, whatever is in them."""
    line = logs.formatter("json").format(record("two\nlines of %s", "ü", specialty="cardiology", adapter=None))
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("time").endswith("+00:00")
    assert told == {"level": "warning", "logger": "hlo", "message": "two\nlines of ü", "specialty": "cardiology"}


def test_a_traceback_is_part_of_the_object() -> None:
    """An exception that is logged does not break the line."""
    made = record("it failed")
    try:
        raise ValueError("here")
    except ValueError:
        made.exc_info = sys.exc_info()
    (line,) = logs.formatter("json").format(made).splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: here")


async def test_each_question_has_a_line_without_its_words(
    make_parts: MakeParts, caplog: pytest.LogCaptureFixture
) -> None:
    """A question's line says what came of it, under which trace, by which specialty and adapter; never its words."""
    caplog.set_level(logging.DEBUG, "hlo")
    engine = EchoEngine()
    parts = make_parts(engine=engine)
    answer = await ask(parts, HEART)
    with pytest.raises(InvalidRequest):
        await ask(parts, "")
    engine.closed = True
    with pytest.raises(EngineDead):
        await ask(parts, HEART)
    told = [json.loads(logs.formatter("json").format(one)) for one in caplog.records]
    assert [one["message"] for one in told] == [f"ask: {answer.finish_reason}", "ask: refused", "ask: error"]
    assert answer.adapter
    assert (told[0]["trace_id"], told[0]["specialty"]) == (answer.trace_id, answer.specialty)
    assert (told[0]["adapter"], told[0]["route"]) == (answer.adapter.engine_name, "routed")
    assert told[0]["completion_tokens"] == answer.usage.completion_tokens
    assert "specialty" not in told[1]
    assert told[2]["error"] == "EngineDead"
    assert "chest" not in str(told)
