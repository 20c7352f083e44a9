"""What is tried: text that no keyboard makes, broken bytes, and documents with one thing wrong in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

MARKS = (
    *("\x00", "\r", "\n", "\u2028", "\u202e", "\u200b", "\ufeff", "\ud800", "\udfff", "\ue000", "\U0010ffff"),
    *("a\u0301" * 40, "\u0130", "\u1e9e", "\ufdfa", "</s>", "<s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>"),
    *(
        "{{ 7*7 }}",
        "{% raw %}",
        "{{",
        "#}",
        "{#",
        "../",
        "..\\",
        "/etc/passwd",
        "%2e%2e%2f",
        "%00",
        "file:///etc/passwd",
    ),
    *("http://127.0.0.1", "@", "#", "?", ":", "~", "'", '"', "`", "\\", "$(id)", "; --", "%s", "{0}", "<script>"),
    *("1e999", "NaN", "-", "="),
)
TEXT = st.lists(st.sampled_from(MARKS) | st.text(max_size=8), max_size=6).map("".join)
"""Any text, and often what means something to some parser; lone surrogates too."""

SENDABLE = TEXT.map(lambda text: text.encode("utf-8", "replace").decode())
"""The same without lone surrogates, which UTF-8 does not have."""

NUMBERS = st.sampled_from((0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.0, -0.0, 1e308, 5e-324)) | st.floats()
ATOMS = st.none() | st.booleans() | NUMBERS | TEXT | st.integers()
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
"""Anything that JSON can hold, and NaN, which Python's JSON can."""

DEEP = st.sampled_from(("[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000)).map(str.encode)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every part of a document."""
    yield here
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*here, key))


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A document with another value at one place."""
    if not place:
        return value
    made = copy.deepcopy(document)
    part = made
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return made


def damaged(document: Any) -> st.SearchStrategy[Any]:
    """A document with one part exchanged for anything at all, or with a part that it should not have."""
    found = list(places(document))
    other = st.builds(replaced, st.just(document), st.sampled_from(found), VALUES)
    if isinstance(document, dict):
        other |= st.builds(lambda key, value: document | {key: value}, TEXT, VALUES)
    return other


@st.composite
def cut(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them taken out or exchanged."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(start + 40, len(content))))
    return content[:start] + draw(st.binary(max_size=12)) + content[stop:]


def written(document: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: the right one with something wrong, or nothing of the kind."""
    lines = (damaged(document) | VALUES).map(lambda one: json.dumps(one).encode())
    return lines | cut(json.dumps(document).encode()) | DEEP | st.binary()
