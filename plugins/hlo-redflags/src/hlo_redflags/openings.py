"""What a match of a pattern can begin with, so that patterns are tried only at words that are such a beginning.

A question of forty words holds beginnings of a fifth of the concepts, each at a word or two; trying them all
everywhere takes most of the time of a screening.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

LENGTH = 6  # of a beginning, in characters: with it, 65 of 378 concepts are left of a patient's question
_ANYTHING = "\0"  # stands at the end of a beginning that can go on as it likes
_TOKEN = re.compile(r"\(\?:|\[[^\]]*\]|\{[^}]*\}|\\.|.")
_START = re.compile(r"(?<![^ ])[^ ]")


class Openings:
    """The names of patterns by what their matches can begin with; every match begins where a word does."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        """Take regular expressions as `hlo_redflags.rules` writes them, by name."""
        self._names: dict[str, set[str]] = {}
        for name, pattern in patterns.items():
            for opening in openings(pattern):
                self._names.setdefault(opening, set()).add(name)

    def possible(self, text: str) -> dict[str, list[int]]:
        """All patterns that may match somewhere in `text`, in which one space stands between words: where, in order."""
        found: dict[str, list[int]] = {}
        for word in _START.finditer(text):
            at = word.start()
            for end in range(at, at + LENGTH + 1):
                for name in self._names.get(text[at:end], ()):
                    places = found.setdefault(name, [])
                    if not places or places[-1] != at:
                        places.append(at)
        return found


def openings(pattern: str) -> frozenset[str]:
    """What a match, and a space behind it, can begin with: as much as is certain, `LENGTH` characters at most.

    `pattern` may have groups `(?:…)`, `|`, `?`, `*`, `{0,n}`, `[…]`, `[^…]` and characters that are escaped.
    """
    found, _ = _either(_TOKEN.findall(pattern), 0)
    return frozenset(one.rstrip(_ANYTHING) for one in _then(found, {" "}))


def _either(tokens: Sequence[str], at: int) -> tuple[set[str], int]:
    """The openings of alternatives, and where they end: at a closing bracket, or with the pattern."""
    found: set[str] = set()
    so_far = {""}
    while at < len(tokens) and tokens[at] != ")":
        if tokens[at] == "|":
            found |= so_far
            so_far, at = {""}, at + 1
            continue
        if all(map(_whole, so_far)):
            at = _skip(tokens, at)
            continue
        one, at = _one(tokens, at)
        if at < len(tokens) and tokens[at] == "?":
            one, at = one | {""}, at + 1
        elif at < len(tokens) and tokens[at][0] in "*{":
            one, at = {_ANYTHING}, at + 1
        so_far = _then(so_far, one)
    return found | so_far, at


def _one(tokens: Sequence[str], at: int) -> tuple[set[str], int]:
    """The openings of a group, a class or a character, and where it ends."""
    here = tokens[at]
    if here == "(?:":
        found, end = _either(tokens, at + 1)
        return found, end + 1
    if here[0] == "[":
        return _class(here[1:-1]), at + 1
    if here[0] == "\\":
        return set("0123456789") if here[1] == "d" else {here[1]}, at + 1
    return {here}, at + 1


def _class(inside: str) -> set[str]:
    """The characters of a class; one that has more than characters and ranges in it may be anything."""
    if inside.startswith("^") or "\\" in inside:
        return {_ANYTHING}
    found: set[str] = set()
    at = 0
    while at < len(inside):
        to = at + 2 if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside) else at
        found |= {chr(code) for code in range(ord(inside[at]), ord(inside[to]) + 1)}
        at = to + 1
    return found


def _skip(tokens: Sequence[str], at: int) -> int:
    """Where the alternative ends that `at` lies in."""
    depth = 0
    while at < len(tokens) and (depth or tokens[at] not in "|)"):
        depth += (tokens[at] == "(?:") - (tokens[at] == ")")
        at += 1
    return at


def _then(before: Iterable[str], after: Iterable[str]) -> set[str]:
    """Each of `before` that is not whole yet, with each of `after` behind it."""
    found = set()
    for one in before:
        found |= {one} if _whole(one) else {(one + more)[:LENGTH] for more in after}
    return found


def _whole(opening: str) -> bool:
    """Whether what follows tells nothing more."""
    return len(opening) >= LENGTH or opening.endswith(_ANYTHING)
