"""The audit log: what a record holds, and that nobody changes, adds or takes out a line unseen."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.errors import AuditError, SettingsError
from hlo.records import AdapterVersion, Route, Score, Usage
from hlo.telemetry import audit
from hlo.telemetry.audit import Audit, Head, Keys, head_path
from hlo.telemetry.audit_check import check

SECRET = "a key of thirty-two characters!!"  # noqa: S105 - for these tests
HEART = AdapterVersion("heart", "ab" * 32, Path("heart"), 8, ("q_proj",), 1)
ROUTE = Route("routed", "heart", scores=tuple(Score(f"s{n}", 0.9 - n / 10, 0.5) for n in range(8)), margin=0.1)


def record(log: Audit, question: str = "canary words", outcome: str = "stop") -> None:
    log.append(
        question,
        trace_id="7" * 32,
        route=ROUTE,
        specialty="heart",
        adapter=HEART,
        model="base",
        usage=Usage(20, 5),
        outcome=outcome,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of six records."""
    made = tmp_path / "audit.jsonl"
    written(made, 6)
    return made


def written(path: Path, records: int, max_bytes: int = 1 << 20) -> Head:
    log = Audit.open(path, SECRET, max_bytes)
    for number in range(records):
        record(log, f"canary words {number}")
    log.close()
    return log.head


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def faults(path: Path, **options: int | Head) -> list[tuple[int, str]]:
    return [(one.line, one.what) for one in check(path, SECRET, **options).faults]  # type: ignore[arg-type]


def test_a_record_says_who_answered_and_not_what_was_asked(tmp_path: Path) -> None:
    """A line holds time, trace, specialty, adapter's hash, scores, tokens and outcome; the question only as a hash."""
    log = Audit.open(tmp_path / "audit.jsonl", SECRET, 1 << 20)
    record(log)
    log.close()
    (line,) = lines(tmp_path / "audit.jsonl")
    said = json.loads(line)
    assert said["trace_id"] == "7" * 32
    assert (said["specialty"], said["adapter"], said["adapter_sha256"]) == ("heart", "heart", "ab" * 32)
    assert (said["route"], said["prompt_tokens"], said["completion_tokens"]) == ("routed", 20, 5)
    assert [score["specialty"] for score in said["scores"]] == ["s0", "s1", "s2", "s3", "s4"]
    assert (said["number"], said["outcome"], said["previous"]) == (1, "stop", "")
    assert said["question"] == Keys(SECRET).question("canary words") != Keys(SECRET[::-1]).question("canary words")
    assert b"canary" not in line


def test_what_was_written_checks(path: Path) -> None:
    """A log as it was written has no fault, also when it was closed and opened again."""
    found = check(path, SECRET)
    assert (found.records, found.first, found.last.number, found.faults) == (6, 1, 6, ())
    head = written(path, 2)
    assert check(path, SECRET).last == head == Head(8, head.mac)
    assert faults(path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all_: [*all_[:2], all_[2].replace(b"heart", b"brain"), *all_[3:]], [(3, "was changed")]),
        (lambda all_: [*all_[:2], *all_[3:]], [(3, "1 record is missing before this one")]),
        (lambda all_: all_[2:], [(1, "2 records are missing before this one")]),
        (lambda all_: all_[:4], [(0, "2 records are missing at the end")]),
        (lambda all_: [], [(0, "6 records are missing at the end")]),
        (lambda all_: [*all_[:3], all_[1], *all_[3:]], [(4, "record 2 comes again"), (5, "missing before")]),
        (lambda all_: [*all_[:2], b"what is this?\n", *all_[2:]], [(3, "no whole record")]),
        (lambda all_: [*all_[:5], all_[5][:-20]], [(6, "no whole record"), (0, "1 record is missing at the end")]),
    ],
)
def test_a_changed_log_is_found_out(
    change: Callable[[list[bytes]], list[bytes]], said: list[tuple[int, str]], path: Path
) -> None:
    """A line that is changed, taken out, repeated, added or cut off is told with its place."""
    path.write_bytes(b"".join(change(lines(path))))
    found = faults(path)
    assert [line for line, _ in found] == [line for line, _ in said]
    assert all(words in what for (_, what), (_, words) in zip(found, said, strict=True))


@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_no_byte_can_be_changed(place: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whichever byte of a line is another, the log has a fault."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    written(path, 2)
    content = bytearray(path.read_bytes())
    place %= len(content) - 1  # the last line break may be missing
    if content[place] == value:
        return
    content[place] = value
    path.write_bytes(content)
    assert faults(path)


def test_an_old_log_put_back_with_its_head_lacks_what_was_noted_down(path: Path) -> None:
    """Whoever puts back an older log and its head is found out by a head that was noted down; a true one is there."""
    old = {one: one.read_bytes() for one in (path, head_path(path))}
    noted = written(path, 3)
    assert faults(path, expected=noted) == []
    for file, content in old.items():
        file.write_bytes(content)
    assert faults(path) == []
    assert faults(path, expected=noted) == [(0, "record 9 is not the one that was noted down")]


def test_records_of_two_logs_do_not_mix(path: Path, tmp_path: Path) -> None:
    """A record of another log, made with the same key, does not stand in the place of one of this log."""
    written(tmp_path / "other.jsonl", 6)
    own, other = lines(path), lines(tmp_path / "other.jsonl")
    path.write_bytes(b"".join([*own[:3], *other[3:]]))
    assert faults(path)[0] == (4, "this record does not follow the one before it")


def test_a_head_can_not_be_forged(path: Path) -> None:
    """A head without the key's seal, or none at all, is a fault."""
    head_path(path).write_text('{"number":6,"mac":"00","seal":"00"}')
    assert faults(path) == [(0, "the head was changed, or written with another key")]
    head_path(path).unlink()
    assert "the head is missing" in faults(path)[0][1]


def test_a_large_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    """From the size that was set on, a new file is begun; all are one log, and what was archived may be named."""
    path = tmp_path / "audit.jsonl"
    written(path, 9, max_bytes=1500)
    names = [file.name for file in audit.files(path)]
    assert names == ["audit.000000000001.jsonl", "audit.000000000003.jsonl", *names[2:]]
    assert names[-1] == "audit.jsonl"
    assert (check(path, SECRET).records, faults(path)) == (9, [])
    written(path, 1, max_bytes=1500)
    assert check(path, SECRET).last.number == 10
    (tmp_path / names[0]).unlink()
    assert faults(path) == [(1, "2 records are missing before this one")]
    assert faults(path, after=2) == []


def test_a_crash_in_the_middle_of_a_line_costs_that_line(path: Path) -> None:
    """What a crash cut off stays as it is, and the next record stands on a line of its own."""
    path.write_bytes(path.read_bytes()[:-30])
    head_path(path).write_bytes(Keys(SECRET).head(check(path, SECRET).last))
    written(path, 2)
    assert faults(path) == [(6, "this is no whole record")]
    assert check(path, SECRET).last.number == 7


def test_one_server_has_a_log(path: Path) -> None:
    """A second server that is to write to the same log is refused, and so is one with another key."""
    log = Audit.open(path, SECRET, 1 << 20)
    with pytest.raises(SettingsError, match="another server writes to"):
        Audit.open(path, SECRET, 1 << 20)
    log.close()
    with pytest.raises(SettingsError, match="another HLO_AUDIT_KEY"):
        Audit.open(path, SECRET[::-1], 1 << 20)


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    """Where the log can not be made, the error names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="can not be written") as caught:
        Audit.open(tmp_path / "file" / "audit.jsonl", SECRET, 1 << 20)
    assert caught.value.remedy


def test_a_full_disk_is_an_error() -> None:
    """An answer that can not be recorded is not passed over in silence."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        log = Audit(Path("/dev/full"), Keys(SECRET), full, Head(), 1 << 20)
        with pytest.raises(AuditError, match="could not be recorded"):
            record(log)


@pytest.fixture
def disk(path: Path) -> Iterator[Callable[[int | None], None]]:
    """Let files grow to a size and no further, as a full disk does (None: as far as they like)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


@pytest.mark.parametrize("room", [0, 1, 300])
def test_a_disk_that_is_full_takes_no_half_of_a_record(
    path: Path, disk: Callable[[int | None], None], room: int
) -> None:
    """What does not fit is not recorded at all, and when there is room again the log goes on as if nothing had been."""
    log = Audit.open(path, SECRET, 1 << 20)
    before = path.read_bytes()
    disk(len(before) + room)
    for _ in range(2):
        with pytest.raises(AuditError, match="could not be recorded"):
            record(log)
        assert path.read_bytes() == before
    disk(None)
    record(log)
    log.close()
    assert (check(path, SECRET).last.number, faults(path)) == (7, [])


def test_a_record_whose_head_can_not_be_kept_is_taken_back(path: Path) -> None:
    """Log and head never tell different things: an answer that was not given is in neither."""
    log = Audit.open(path, SECRET, 1 << 20)
    blocked = head_path(path).with_name(f"{head_path(path).name}.new")
    blocked.mkdir()
    with pytest.raises(AuditError):
        record(log)
    assert (check(path, SECRET).last.number, faults(path)) == (6, [])
    blocked.rmdir()
    record(log)
    log.close()
    assert (check(path, SECRET).last.number, faults(path)) == (7, [])


def test_a_log_that_can_not_be_rotated_goes_on_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no new file can be begun, answers are refused, not recorded nowhere; later the new file is begun."""
    log = Audit.open(path, SECRET, 100)

    def refuse(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "_locked", refuse)
        for _ in range(2):
            with pytest.raises(AuditError, match="No space left"):
                record(log)
    record(log)
    log.close()
    assert len(audit.files(path)) == 2
    assert (check(path, SECRET).last.number, faults(path)) == (7, [])


def test_a_torn_log_on_a_full_disk_is_told(path: Path, disk: Callable[[int | None], None]) -> None:
    """A log that a crash tore, on a disk that is full, is an error with what to do, and not a traceback."""
    path.write_bytes(path.read_bytes()[:-30])
    disk(path.stat().st_size)
    with pytest.raises(SettingsError, match="can not be written") as caught:
        Audit.open(path, SECRET, 1 << 20)
    assert "room" in caught.value.remedy
