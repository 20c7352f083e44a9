"""`hlo keys`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hlo.keys import Keyring

if TYPE_CHECKING:
    from tests.cli.conftest import Hlo


def test_a_key_is_printed_alone(hlo: Hlo, clean_environment: Path) -> None:
    """`hlo keys new` prints the key alone on standard output, so that it can go into a file; it opens the server."""
    done = hlo("keys", "new", "ward 7", "--role", "admin", "--rate", "60", "--concurrent", "4")
    assert (done.status, done.out.count("\n")) == (0, 1)
    found = Keyring(clean_environment / "hlo.keys").find(done.out.strip())
    assert found is not None
    assert (found.name, found.role, found.rate, found.concurrent) == ("ward 7", "admin", 60, 4)
    assert found.id in done.err
    assert done.out.strip() not in done.err


def test_keys_are_listed_without_their_hashes(hlo: Hlo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`hlo keys list` shows id, name, role and limits, revoked keys too, and nothing of which a key could be made."""
    monkeypatch.setenv("HLO_KEYS_FILE", str(tmp_path / "elsewhere"))
    secret = hlo("keys", "new", "ward 7").out.strip().split("_", 2)[2]
    hlo("keys", "new", "ward 8", "--rate", "60")
    assert hlo("keys", "revoke", "ward 7").status == 0
    listed = json.loads(hlo("keys", "list", "--json").out)
    assert [(one["name"], one["role"], one["rate"]) for one in listed] == [
        ("ward 7", "ask", None),
        ("ward 8", "ask", 60),
    ]
    assert [one["revoked"] is not None for one in listed] == [True, False]
    assert "sha256" not in listed[0]
    drawn = hlo("keys", "list").out
    assert "ward 8" in drawn
    assert secret not in drawn


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["revoke", "nobody"], 2, "No key `nobody` is in force"),
        (["new", "x", "--role", "king"], 2, "king"),
        (["new", "x", "--rate", "0"], 2, "0"),
    ],
)
def test_what_is_wrong_is_told(arguments: list[str], status: int, words: str, hlo: Hlo) -> None:
    """An unknown key, role or limit ends with a message, and changes nothing."""
    done = hlo("keys", *arguments)
    assert done.status == status
    assert words in done.err
    assert json.loads(hlo("keys", "list", "--json").out) == []
