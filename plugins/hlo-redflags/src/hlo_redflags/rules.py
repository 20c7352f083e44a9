"""The rules that recognise an emergency: read from `red_flags.toml`, compiled once, applied in linear time.

The method is that of NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029) and ConText (Harkema et al. 2009,
doi:10.1016/j.jbi.2009.05.002): concepts are phrases; modifiers (negation, past, general knowledge, …) are phrases with
a reach, in which the concepts do not count.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import accumulate
from typing import Any, Literal

import msgspec
from msgspec import Struct

from hlo.errors import PluginError
from hlo_redflags.openings import Openings
from hlo_redflags.text import misspellings, plain_words

_FILE = "red_flags.toml"
_PHRASE = re.compile(r"[a-z0-9 |()\[\]?*#~%.,<>_/-]+")
_TWICE = re.compile(r"\*[*?a-z0-9#<\[(]")
_WORD = re.compile(r"(?<![a-z0-9<\[_-])[a-z]+(?![a-z0-9*>\]_-])")
_NAME = re.compile(r"<(\w+)>")
_NUMBER = (
    r"(?:\d[\d.,/]*|an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|"
    r"half|few|several|couple|couple of|many|some)"
)
_UNTIL, _RELEASED = "until", "released_by"  # parts of a modifier, beside its phrases
_SUGAR = (
    ("(", "(?:"),
    (".", r"\."),
    ("~~ ", "(?:[^ .]+ ){0,6}"),
    ("~ ", "(?:[^ .,]+ ){0,3}"),
    ("*", "[^ ]*"),
    ("%", "(?:19|20)[0-9][0-9]"),
)


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One description of an emergency.

    It is met when each concept in `all` occurs, all of them within `within` words, and no concept in `unless` occurs
    anywhere. Occurrences in the reach of a modifier do not count, but for the modifiers that `ignore` names.
    """

    kind: str
    all: tuple[str, ...]
    within: int = 40
    unless: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


class Modifier(Struct, frozen=True, forbid_unknown_fields=True):
    """Phrases after which (`forward`) or around which (`sentence`, `clause`, `question`) concepts do not count.

    A forward reach is `words` long at most, and ends with the sentence or at a phrase in `until`. A modifier has no
    effect where a phrase in `released_by` stands in its reach.
    """

    phrases: tuple[str, ...]
    reach: Literal["forward", "clause", "sentence", "question"]
    words: int = 1000
    until: tuple[str, ...] = ()
    released_by: tuple[str, ...] = ()


class Data(Struct, frozen=True, forbid_unknown_fields=True):
    """What `red_flags.toml` holds. `notices` has the kinds in the order in which they are told, most pressing first."""

    spelling: tuple[str, ...]
    spelled: dict[str, str]
    notices: dict[str, str]
    modifiers: dict[str, Modifier]
    concepts: dict[str, tuple[str, ...]]
    rules: tuple[Rule, ...]


class Span(Struct, frozen=True):
    """Where a phrase stands: its first word, and the one after its last."""

    start: int
    end: int


class Rules:
    """All rules, compiled."""

    def __init__(self, data: Data) -> None:
        """Compile. Raises `PluginError` when a rule or phrase names what is not there, or a phrase is malformed."""
        self._data = data
        slips = misspellings(data.spelling)
        self._spelling = {slip: data.spelled.get(word, word) for slip, word in slips.items()} | data.spelled
        _check_names(data)
        concepts = {name: _spell(phrases, data.spelled) for name, phrases in data.concepts.items()}
        patterns = {name: _either(phrases, concepts, ()) for name, phrases in concepts.items()}
        for name, one in data.modifiers.items():
            for part, phrases in (("", one.phrases), (_UNTIL, one.until), (_RELEASED, one.released_by)):
                if phrases:
                    patterns[_modifier(name, part)] = _either(_spell(phrases, data.spelled), concepts, ())
        self._openings = Openings(patterns)
        self._patterns = {name: _compile(pattern) for name, pattern in patterns.items()}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of emergency, most pressing first."""
        return tuple(self._data.notices)

    def notice(self, kind: str) -> str:
        """What to tell someone who describes an emergency of this kind."""
        return self._data.notices[kind]

    def screen(self, text: str) -> str:
        """The notice of the most pressing kind that `text` describes; empty when there is none.

        The notice on self-harm is never crowded out: where that kind is found too, its notice is a second paragraph.
        That on overdoses says the same already.
        """
        found = self.find(text)
        told = found[:1]
        if "self_harm" in found[1:] and told != ("overdose",):
            told = (*told, "self_harm")
        return "\n\n".join(self.notice(kind) for kind in told)

    def find(self, text: str) -> tuple[str, ...]:
        """The kinds of emergency that `text` describes, most pressing first; empty when there is none."""
        words = [".", *plain_words(text, self._spelling)]
        text = " ".join(words)
        places = self._openings.possible(f"{text} ")
        asked = _Asked(words, text, places, self._patterns, self._data.modifiers)
        possible = frozenset(places)
        met = {rule.kind for rule in self._data.rules if possible.issuperset(rule.all) and asked.meets(rule)}
        return tuple(kind for kind in self._data.notices if kind in met)


class _Asked:
    """One question, and what has been found in it so far. `places` has where each pattern may match."""

    def __init__(
        self,
        words: Sequence[str],
        text: str,
        places: Mapping[str, Sequence[int]],
        patterns: Mapping[str, re.Pattern[str]],
        modifiers: Mapping[str, Modifier],
    ) -> None:
        self._words = words
        self._text = text
        self._starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
        self._places = places
        self._patterns = patterns
        self._modifiers = modifiers
        self._found: dict[str, list[Span]] = {}
        self._covered: dict[str, frozenset[int]] = {}
        self._stops = [number for number, word in enumerate(words) if word == "."]
        self._pauses = [number for number, word in enumerate(words) if word in (".", ",", "but")]

    def meets(self, rule: Rule) -> bool:
        """Whether the rule is met."""
        if not all(self._spans(concept) for concept in rule.all):  # most often so; modifiers need not be looked for
            return False
        spans = []
        for concept in rule.all:
            counting = [one for one in self._spans(concept) if self._counts(one, rule.ignore)]
            if not counting:
                return False
            spans.append(counting)
        return _together(spans, rule.within) and not any(self._spans(concept) for concept in rule.unless)

    def _spans(self, name: str) -> list[Span]:
        if name not in self._found:
            self._found[name] = list(self._search(name))
        return self._found[name]

    def _search(self, name: str) -> Iterator[Span]:
        """Where a pattern matches, from left to right, none in another."""
        end = 0
        for place in self._places.get(name, ()):
            if place >= end and (match := self._patterns[name].match(self._text, place)):
                end = match.end()
                yield Span(bisect_right(self._starts, place) - 1, bisect_right(self._starts, end - 1))

    def _counts(self, span: Span, ignore: Sequence[str]) -> bool:
        ends = {span.start, span.end - 1}
        return not any(ends & self._cover(name) for name in self._modifiers if name not in ignore)

    def _cover(self, name: str) -> frozenset[int]:
        """The numbers of the words that a modifier reaches."""
        if name not in self._covered:
            self._covered[name] = frozenset(self._reached(name, self._modifiers[name]))
        return self._covered[name]

    def _reached(self, name: str, modifier: Modifier) -> set[int]:
        stops = [one.start for one in self._spans(_modifier(name, _UNTIL))]
        releases = [one.start for one in self._spans(_modifier(name, _RELEASED))]
        covered: set[int] = set()
        done = -1  # what was covered from here on back is not gone through again: keeps time linear
        for span in self._spans(_modifier(name)):
            if modifier.reach == "forward":
                first, last = span.end, self._until(span.end, stops, modifier.words)
            else:
                first, last = self._around(span, modifier.reach)
            if last <= done or _any_in(releases, span.start if modifier.reach == "forward" else first, last):
                continue
            covered.update(range(max(first, done), last))
            done = last
        return covered

    def _until(self, start: int, stops: Sequence[int], words: int) -> int:
        end = min(_next(self._stops, start, len(self._words)), start + words)
        return min(end, _next(stops, start, end))

    def _around(self, span: Span, reach: str) -> tuple[int, int]:
        if reach == "question":
            return 0, len(self._words)
        borders = self._stops if reach == "sentence" else self._pauses
        before = bisect_right(borders, span.start - 1) - 1
        return (borders[before] + 1 if before >= 0 else 0), _next(borders, span.end, len(self._words))


def load(package: str = "hlo_redflags", filename: str = _FILE) -> Rules:
    """Read and compile rules from a TOML file inside `package`. Raises `PluginError`."""
    source = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    return read(source, filename)


def read(source: str, filename: str = _FILE) -> Rules:
    """Compile rules from TOML. Raises `PluginError` when they are malformed."""
    try:
        data: Data = msgspec.convert(_flatten(tomllib.loads(source)), Data)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PluginError(f"`{filename}` holds no rules: {error}.", remedy="Mend that line.") from error
    return Rules(data)


def _flatten(table: dict[str, Any]) -> dict[str, Any]:
    """Give each notice the number to call, and each rule its kind: in the file they stand under their kind."""
    number = table.pop("emergency_number", "")
    kinds = table.pop("kinds", {})
    table["notices"] = {name: kind["notice"].replace("{number}", number) for name, kind in kinds.items()}
    table["rules"] = [
        {"kind": name, "ignore": kind.get("ignore", []), **rule}
        for name, kind in kinds.items()
        for rule in kind["rules"]
    ]
    return table


def _check_names(data: Data) -> None:
    named = {name for rule in data.rules for name in (*rule.all, *rule.unless)}
    named |= {name for phrases in data.concepts.values() for phrase in phrases for name in _NAME.findall(phrase)}
    if unknown := sorted(named - set(data.concepts)):
        raise PluginError(f"`{_FILE}` names concepts that it lacks: {unknown}.", remedy="Add them to [concepts].")
    ignored = {name for rule in data.rules for name in rule.ignore}
    if unknown := sorted(ignored - set(data.modifiers)):
        raise PluginError(f"`{_FILE}` ignores modifiers that it lacks: {unknown}.", remedy="Add them to [modifiers].")


def _spell(phrases: Sequence[str], spelled: Mapping[str, str]) -> tuple[str, ...]:
    """Replace words in phrases as they are replaced in questions, so that a phrase may use any of the spellings."""
    return tuple(_WORD.sub(lambda match: spelled.get(match[0], match[0]), phrase) for phrase in phrases)


def _modifier(name: str, part: str = "") -> str:
    """What a modifier's phrases, or another part of it, are called among the patterns; no concept has a `/`."""
    return f"{name}/{part}"


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(f"(?<![^ ]){pattern}(?![^ ])")
    except re.error as error:
        raise PluginError(f"A phrase in `{_FILE}` is malformed: {error}.", remedy="Mend it.") from error


def _either(phrases: Sequence[str], concepts: Mapping[str, Sequence[str]], inside: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(_pattern(phrase, concepts, inside) for phrase in phrases)})"


def _pattern(phrase: str, concepts: Mapping[str, Sequence[str]], inside: tuple[str, ...]) -> str:
    """A regular expression for a phrase.

    Besides words, `|`, `()` and `?`, a phrase has `*` (the rest of a word), `#` (a number), `~` and `~~` (up to three,
    or six, other words of the sentence) and `<concept>`. Nothing repeats without a bound across words, so that no
    phrase can backtrack out of hand.
    """
    if not _PHRASE.fullmatch(phrase) or not phrase.strip() or _TWICE.search(phrase):
        raise PluginError(f"The phrase `{phrase}` in `{_FILE}` is malformed.", remedy="Use a-z, 0-9 and |()?*#~<>.")
    for sugar, plain in _SUGAR:
        phrase = phrase.replace(sugar, plain)
    phrase = phrase.replace("#", _NUMBER)

    def inner(match: re.Match[str]) -> str:
        name = match[1]
        if name in inside or name not in concepts:
            raise PluginError(f"The concept `{name}` in `{_FILE}` is missing, or holds itself.", remedy="Mend it.")
        return _either(concepts[name], concepts, (*inside, name))

    return _NAME.sub(inner, phrase)


def _together(spans: Sequence[Sequence[Span]], within: int) -> bool:
    """Whether one span of each concept can be chosen so that all start within `within` words, no two at one word."""
    events = sorted((span.start, concept) for concept, some in enumerate(spans) for span in some)
    # As many starts as there are concepts are enough: the others can take all but one of them.
    latest = [deque[int](maxlen=len(spans)) for _ in spans]
    for start, concept in events:
        latest[concept].append(start)
        others = [
            [one for one in starts if start - one <= within]
            for number, starts in enumerate(latest)
            if number != concept
        ]
        if _choose(others, (start,)):
            return True
    return False


def _choose(options: Sequence[Sequence[int]], taken: tuple[int, ...]) -> bool:
    """Whether one of each of `options` can be chosen, no two alike and none of those that are taken."""
    if not options:
        return True
    return any(_choose(options[1:], (*taken, one)) for one in options[0] if one not in taken)


def _next(numbers: Sequence[int], start: int, default: int) -> int:
    """The first of the sorted `numbers` from `start` on, or `default`."""
    at = bisect_right(numbers, start - 1)
    return numbers[at] if at < len(numbers) else default


def _any_in(numbers: Sequence[int], first: int, last: int) -> bool:
    """Whether one of the sorted `numbers` lies in [first, last)."""
    return _next(numbers, first, last) < last


RULES = load()
