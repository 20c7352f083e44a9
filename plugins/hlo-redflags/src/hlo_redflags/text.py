"""Patients' words as the rules read them: lower case, one space between words, a lone `.` where a sentence ends."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

_APOSTROPHES = re.compile("['\u2018\u2019\u02bc`\u00b4]")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_TOKEN = re.compile(r"\d+(?:[.,/]\d+)?|[^\W\d_]+|[.!?;\n]|[,:()\u2013\u2014-]")
_ENDS = frozenset(".!?;\n")
_VOWELS = "aeiouy"


def plain_words(text: str, spelling: Mapping[str, str]) -> list[str]:
    """Split `text` into plain words: no capitals, accents, apostrophes or hyphens ("can't" is "cant").

    A sentence's end is the word `.`, a pause inside a sentence the word `,`. A number keeps its fraction ("38.5").
    Words that are keys of `spelling` are replaced. Time is linear in the text.
    """
    flat = unicodedata.normalize("NFKD", _APOSTROPHES.sub("", text)).casefold()
    if not flat.isascii():
        flat = "".join(one for one in flat if not unicodedata.combining(one))
    words: list[str] = []
    for word in _TOKEN.findall(_HYPHEN.sub(" ", flat)):
        if word in _ENDS:
            words.append(".")
        elif word[0].isalnum():
            words.append(spelling.get(word, word))
        else:
            words.append(",")
    return words


def misspellings(words: Iterable[str]) -> dict[str, str]:
    """Map the likeliest slips in `words` to the right word: a letter left out, doubled, swapped, or a wrong vowel.

    The first letter is never touched. These are four of Damerau's kinds of error (1964), restricted so that few
    other words are reached; what is itself one of `words` stays as it is.
    """
    known = tuple(words)
    slips: dict[str, str] = {}
    for word in known:
        for at in range(1, len(word)):
            head, letter, tail = word[:at], word[at], word[at + 1 :]
            slips[head + tail] = word
            slips[head + letter + letter + tail] = word
            if tail:
                slips[head + tail[0] + letter + tail[1:]] = word
            if letter in _VOWELS:
                slips |= {head + vowel + tail: word for vowel in _VOWELS}
    return {slip: word for slip, word in slips.items() if slip not in known}
