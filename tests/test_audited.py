"""What the pipeline records of each question in the audit log, with fakes at both ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo.errors import AuditError, EngineDead, InvalidRequest, UnknownSpecialty
from hlo.pipeline import Policy
from hlo.records import Answer, Completion, Question, SamplingOverrides
from hlo.telemetry.audit import Audit, Head, Keys
from hlo.telemetry.audit_check import check
from hlo.testing import EchoEngine
from tests.telemetry.test_audit import SECRET
from tests.test_pipeline import HEART, ask

if TYPE_CHECKING:
    from tests.conftest import MakeParts


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Audit]:
    """An audit log; in the end it must check, and hold no word."""
    path = tmp_path / "audit.jsonl"
    made = Audit.open(path, SECRET, 1 << 20)
    yield made
    made.close()
    assert check(path, SECRET).faults == ()
    assert b"chest" not in path.read_bytes()


@pytest.fixture
def records(log: Audit, tmp_path: Path) -> Any:
    """What the log holds now."""
    return lambda: [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]


async def test_an_answer_is_recorded_once(log: Audit, records: Any, make_parts: MakeParts) -> None:
    """A whole answer leaves one record: who answered, with what, how long it was and under which trace."""
    answer = await ask(make_parts(audit=log), HEART)
    (said,) = records()
    assert answer.adapter
    assert (said["trace_id"], said["specialty"], said["route"]) == (answer.trace_id, answer.specialty, "routed")
    assert (said["adapter"], said["adapter_sha256"]) == (answer.adapter.name, answer.adapter.sha256)
    assert said["scores"][0]["specialty"] == answer.specialty
    assert (said["prompt_tokens"], said["completion_tokens"]) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
    assert (said["model"], said["outcome"]) == ("echo", answer.finish_reason)
    assert said["question"] == Keys(SECRET).question(HEART)


async def test_what_became_no_answer_is_recorded(log: Audit, records: Any, make_parts: MakeParts) -> None:
    """A refused question, a failed one and one whose client left are recorded, with what was known by then."""
    engine = EchoEngine()
    parts = make_parts(audit=log, engine=engine, policy=Policy(max_question_chars=100))
    with pytest.raises(InvalidRequest):
        await ask(parts, "chest " * 100)
    with pytest.raises(UnknownSpecialty):
        await ask(parts, Question(HEART, specialty="nobody"))
    async with aclosing(parts.pipeline.ask(Question(HEART))) as events:
        for _ in range(5):  # who answers, and four characters
            await anext(events)
    engine.loaded.clear()
    engine.closed = True
    with pytest.raises(EngineDead):
        await ask(parts, HEART)
    refused, unknown, left, failed = records()
    assert [one["outcome"] for one in (refused, unknown, left, failed)] == ["refused", "refused", "abort", "error"]
    assert (refused["route"], refused["prompt_tokens"]) == (None, 0)
    assert (left["route"], left["completion_tokens"]) == ("routed", 4)
    assert left["adapter_sha256"]


async def test_a_raw_prompt_is_recorded(log: Audit, records: Any, make_parts: MakeParts) -> None:
    """A raw prompt's continuation is recorded with the adapter that was named; there was no route."""
    parts = make_parts(audit=log)
    name = next(iter(parts.pipeline.catalog.entries))
    events = [event async for event in parts.pipeline.complete("chest", name, SamplingOverrides())]
    assert isinstance(events[-1], Completion)
    with pytest.raises(InvalidRequest):
        [event async for event in parts.pipeline.complete("", name, SamplingOverrides())]
    done, refused = records()
    assert (done["route"], done["specialty"], done["adapter"], done["outcome"]) == (None, None, name, "stop")
    assert done["completion_tokens"] == events[-1].usage.completion_tokens
    assert (refused["outcome"], refused["adapter"]) == ("refused", None)


@pytest.fixture
def full_disk() -> Iterator[Audit]:
    """A log on a disk without room."""
    with Path("/dev/full").open("wb", buffering=0) as file:
        yield Audit(Path("/dev/full"), Keys(SECRET), file, Head(), 1 << 20)


async def test_an_answer_that_can_not_be_recorded_is_not_given(
    full_disk: Audit, make_parts: MakeParts, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk an answer ends in an error instead; of what became no answer anyhow, the log tells."""
    parts = make_parts(audit=full_disk)
    events: list[object] = []

    async def read() -> None:
        async for event in parts.pipeline.ask(Question(HEART)):
            events.append(event)

    with pytest.raises(AuditError, match="could not be recorded"):
        await read()
    assert len(events) > 1
    assert not any(isinstance(event, Answer) for event in events)
    assert not caplog.records
    with pytest.raises(InvalidRequest):
        await ask(parts, "")
    assert "could not be recorded" in caplog.text
