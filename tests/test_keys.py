"""API keys: how they are made, kept, found, revoked, and read again."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from pathlib import Path

import pytest

from hlo import keys
from hlo.errors import SettingsError
from hlo.keys import Keyring


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the keys are kept; no file is there yet."""
    return tmp_path / "kept" / "hlo.keys"


def made(path: Path, name: str, role: keys.Role = "ask") -> str:
    """A new key in the file."""
    key, secret = keys.make(name, role)
    keys.add(path, key)
    return secret


def test_a_key_has_256_random_bits() -> None:
    """A key is `hlo_ID_SECRET` with 32 random bytes, another each time."""
    (_, first), (_, second) = keys.make("a", "ask"), keys.make("a", "ask")
    prefix, number, secret = first.split("_", 2)
    assert (prefix, len(number)) == ("hlo", 12)
    assert len(secret) == 43  # 256 bits in base64
    assert not set(first.split("_")[1:]) & set(second.split("_")[1:])


def test_only_a_hash_is_kept(path: Path) -> None:
    """The file has the secret's SHA-256, not the secret, and only its owner can read it."""
    secret = made(path, "ward 7").split("_", 2)[2]
    kept = path.read_text()
    assert secret not in kept
    assert hashlib.sha256(secret.encode()).hexdigest() in kept
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir() if one.name.endswith(".new")] == []


def test_a_key_is_found_by_what_was_given(path: Path) -> None:
    """A key finds its name and role; what differs from it in any place finds nothing."""
    given = made(path, "ward 7", "admin")
    other = made(path, "ward 8")
    ring = Keyring(path)
    found = ring.find(given)
    assert found is not None
    assert (found.name, found.role) == ("ward 7", "admin")
    prefix, number, secret = given.split("_", 2)
    swapped = f"{prefix}_{number}_{other.split('_', 2)[2]}"
    for wrong in ("", "hlo", "hlo_", f"hlo_{number}", f"hlo_{number}_", swapped, given[:-1], given + "x", secret, "é"):
        assert ring.find(wrong) is None


@pytest.mark.parametrize("known", [True, False])
def test_comparison_takes_constant_time(known: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an id is known or not, one comparison in constant time is made, of two hashes of the same length."""
    given = made(path, "ward 7")
    ring, seen = Keyring(path), list[tuple[str, str]]()
    compare = hmac.compare_digest

    def watch(one: str, other: str) -> bool:
        seen.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    ring.find(given[:-1] + "?" if known else "hlo_000000000000_x")
    ((one, other),) = seen
    assert len(one) == len(other) == 64


def test_a_name_is_one_keys_alone(path: Path) -> None:
    """A name is given to one key in force; once that is revoked, another may have it."""
    made(path, "ward 7")
    with pytest.raises(SettingsError, match="`ward 7` already"):
        made(path, "ward 7")
    keys.revoke(path, "ward 7")
    made(path, "ward 7")
    assert [one.live for one in keys.read(path)] == [False, True]


def test_a_revoked_key_is_refused_at_once(path: Path) -> None:
    """A key that is revoked, by id or name, opens nothing from the next look at the file on; the others do."""
    first, second, third = (made(path, name) for name in "abc")
    ring = Keyring(path)
    keys.revoke(path, "a")
    keys.revoke(path, second.split("_")[1])
    ring.refresh()
    assert ring.find(first) is ring.find(second) is None
    assert ring.find(third)
    with pytest.raises(SettingsError, match="No key `a` is in force"):
        keys.revoke(path, "a")


def test_a_new_key_opens_a_running_server(path: Path) -> None:
    """A key that is made later is found, and from then on one is needed."""
    ring = Keyring(path)
    assert not ring.closed
    given = made(path, "a")
    ring.refresh()
    assert ring.closed
    assert ring.find(given)


@pytest.mark.parametrize("how", ["revoked", "lost", "emptied"])
def test_a_closed_server_stays_closed(how: str, path: Path) -> None:
    """When the last key is revoked, or the file is lost, nobody may ask: it never opens to everybody."""
    given = made(path, "a")
    ring = Keyring(path)
    if how == "revoked":
        keys.revoke(path, "a")
    elif how == "lost":
        path.unlink()
    else:
        path.write_text('{"keys": []}')
    ring.refresh()
    assert ring.closed
    assert ring.find(given) is None


def test_what_can_not_be_read_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is spoiled while the server runs leaves the keys as they were, and is told once."""
    given = made(path, "a")
    ring = Keyring(path)
    path.write_text("{")
    for _ in range(3):
        ring.refresh()
    assert ring.find(given)
    assert caplog.text.count("the keys stay as they were") == 1


@pytest.mark.parametrize(
    "content", ["", "[]", '{"keys": [{}]}', '{"keys": [], "more": 1}', "\xff", '{"keys": [{"id": "A"}]}']
)
def test_a_spoiled_file_is_an_error(content: str, path: Path) -> None:
    """A file that is not as `hlo keys` writes it is refused with its place and what to do."""
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"hlo\.keys") as caught:
        Keyring(path)
    assert "hlo keys" in caught.value.remedy


def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    """Commands that change the file at the same time do not undo each other's change."""
    threads = [threading.Thread(target=made, args=(path, f"key {number}")) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(keys.read(path)) == 8


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    """Where no file can be written, the error names the place and the setting."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="can not be written") as caught:
        made(tmp_path / "file" / "hlo.keys", "a")
    assert "HLO_KEYS_FILE" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_stays_its_owners(path: Path) -> None:
    """When root changes the file, whose it was can still read it."""
    made(path, "a")
    os.chown(path, 1234, 1234)
    made(path, "b")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)
