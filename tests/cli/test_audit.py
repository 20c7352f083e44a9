"""`hlo audit`, on logs that were written with HLO's own writer."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from hlo.telemetry.audit import Keys, head_path
from tests.telemetry.test_audit import SECRET, lines, written

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Hlo


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of three records, and its key in the environment."""
    monkeypatch.setenv("HLO_AUDIT_KEY", SECRET)
    written(tmp_path / "audit.jsonl", 3)
    return tmp_path / "audit.jsonl"


def test_a_log_as_it_was_written_is_confirmed(hlo: Hlo, path: Path) -> None:
    """The number of records and the head are told; the head, noted down, is found again."""
    done = hlo("audit", "verify", "--audit-log", str(path))
    assert (done.status, done.out.splitlines()[0]) == (0, "3 records as they were written, from 1 to 3")
    head = done.out.splitlines()[1].removeprefix("head: ")
    assert hlo("audit", "verify", "--audit-log", str(path), "--expect", head).status == 0
    assert hlo("audit", "verify", "--audit-log", str(path), "--expect", "nonsense").status == 2


def test_a_removed_line_is_told(hlo: Hlo, path: Path) -> None:
    """A line that was taken out is told with its place, for people and for machines, and the status is 1."""
    first, _, third = lines(path)
    path.write_bytes(first + third)
    done = hlo("audit", "verify", "--audit-log", str(path))
    assert done.status == 1
    assert f"{path}, line 2: 1 record is missing before this one" in done.out
    told = json.loads(hlo("audit", "verify", "--audit-log", str(path), "--json").out)
    assert [fault["line"] for fault in told["faults"]] == [2]
    head_path(path).unlink()
    assert f"{head_path(path)}: the head is missing" in hlo("audit", "verify", "--audit-log", str(path)).out


def test_a_question_is_found_by_its_hash(hlo: Hlo, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of a question from standard input is the one that its record carries."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("canary words 1\n"))
    done = hlo("audit", "hash", "--audit-log", str(path))
    assert done.out.strip() == Keys(SECRET).question("canary words 1") == json.loads(lines(path)[1])["question"]


def test_without_a_log_there_is_a_remedy(hlo: Hlo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no log is set, the error says which settings are wanted."""
    monkeypatch.delenv("HLO_AUDIT_LOG", raising=False)
    done = hlo("audit", "verify")
    assert done.status == 2
    assert "HLO_AUDIT_LOG or HLO_AUDIT_KEY is not set" in done.err
