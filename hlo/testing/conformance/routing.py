"""The routing examples: whether they are fit to route by, and which questions they take from whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from hlo import assemble
from hlo.records import Specialty
from hlo.routing.evaluation import NOWHERE
from hlo.scaffold import starter_examples
from hlo.testing.catchment import all_examples, audit
from hlo.testing.conformance.bench import Bench, Told, ok, trouble, warning

FEWEST_EXAMPLES = 10
GOOD_EXAMPLES = 50
SAME = 0.97
"""Cosine similarity from which two examples of one specialty are told as one."""
SHARED = 0.95
"""Cosine similarity from which an example is told as another specialty's."""
COMES_HOME = 0.6
"""Share of a specialty's own examples below which it is warned that they go elsewhere."""


def examples(bench: Bench) -> Iterator[Told]:
    """Whether the routing examples are enough, different from each other, and from other specialties'."""
    for specialty in bench.declared:
        texts = all_examples(specialty)
        faults = [*_counted(specialty, texts), *_starters(specialty, texts)]
        # An encoder that can not be had must not hide what was found without one.
        yield from faults
        found = [*_lengths(specialty, texts, bench), *_near(specialty, texts, bench)] if texts else []
        yield from found
        if not faults and not found:
            parts = ", ".join(f"{len(some)} {part}" for part, some in specialty.examples.items())
            yield ok(f"`{specialty.name}`: {parts}")


def _counted(specialty: Specialty, texts: Sequence[str]) -> Iterator[Told]:
    name = specialty.name
    if not texts and specialty.embeddings is None:
        yield trouble(f"`{name}` has none, so no question goes there.", "Write fifty in examples.toml.")
        return
    if not texts:
        yield warning(
            f"`{name}` has embeddings alone: nobody can read what it is routed by, or use another encoder.",
            "Declare `examples` too.",
        )
        return
    if len(texts) < GOOD_EXAMPLES:
        tell = trouble if len(texts) < FEWEST_EXAMPLES else warning
        yield tell(
            f"`{name}` has {len(texts)}; {FEWEST_EXAMPLES} are the least, {GOOD_EXAMPLES} a good beginning.",
            "Write more, in patients' own words.",
        )
    if not specialty.examples.get("patients"):
        yield warning(
            f"`{name}` has no part `patients`.", "Patients do not name the disease: write what they would ask."
        )
    if empty := sum(not text.strip() for text in texts):
        yield trouble(f"`{name}` has {empty} without a word.", "Take them out.")
    if twice := len(texts) - len({_folded(text) for text in texts}):
        yield warning(f"`{name}` has {twice} that stand there twice.", "Write others.")


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _starters(specialty: Specialty, texts: Sequence[str]) -> Iterator[Told]:
    """Examples that `hlo plugins new` wrote, for whatever title it was."""
    forms = [_folded(form) for part in starter_examples("*").values() for form in part]
    if left := sum(any(fnmatchcase(_folded(text), form) for form in forms) for text in texts):
        yield warning(
            f"`{specialty.name}` still has {left} of the examples that `hlo plugins new` wrote.",
            "Replace them: any specialty could be asked these.",
        )


def _lengths(specialty: Specialty, texts: Sequence[str], bench: Bench) -> Iterator[Told]:
    longest = bench.settings.max_question_chars
    if over := sum(len(text) > longest for text in texts):
        yield warning(
            f"`{specialty.name}` has {over} with more than {longest} characters, which no question may have.",
            "Shorten them.",
        )
    # Where the last word changes nothing, the encoder did not read that far. What is short fits every encoder's window.
    long = [text.split() for text in texts if len(text) > 200 and len(text.split()) > 1]
    whole = bench.encoder.encode([" ".join(words) for words in long])
    shorter = bench.encoder.encode([" ".join(words[:-1]) for words in long])
    if cut := int((np.abs(whole - shorter).max(axis=1, initial=0) < 1e-6).sum()):
        yield warning(
            f"`{specialty.name}` has {cut} that are longer than the encoder's window: it does not see their ends.",
            "Shorten them.",
        )


def _near(specialty: Specialty, texts: Sequence[str], bench: Bench) -> Iterator[Told]:
    """Examples that say the same as another one, of this specialty or of another."""
    own = list({_folded(text): text for text in texts}.values())
    vectors = bench.encoder.encode(own)
    if pairs := int(np.triu(vectors @ vectors.T >= SAME, k=1).sum()):
        yield warning(
            f"`{specialty.name}` has {pairs} pairs that are nearly the same (cosine {SAME} and more).",
            "Ask about something else in one of each: what is there twice has twice the weight.",
        )
    for other in (*bench.others.values(), *bench.declared):
        theirs = all_examples(other)
        if other.name == specialty.name or not theirs:
            continue
        close = vectors @ bench.encoder.encode(theirs).T
        rows = np.flatnonzero(close.max(axis=1) >= SHARED)
        if rows.size:
            shown = "; ".join(f"“{own[row]}” and “{theirs[int(close[row].argmax())]}”" for row in rows[:3])
            more = f"; and {rows.size - 3} more" if rows.size > 3 else ""
            yield warning(
                f"`{specialty.name}` shares {rows.size} with `{other.name}` (cosine {SHARED} and more): {shown}{more}.",
                "Decide whose they are.",
            )


def catchment(bench: Bench) -> Iterator[Told]:
    """Which questions it would take from whom, and whether its own come home."""
    new = [one for one in bench.declared if any(all_examples(one)) or one.embeddings is not None]
    if not new:
        return
    thresholds = assemble.thresholds(bench.settings)
    installed = list(bench.others.values())
    behind, cache = bench.settings.background, assemble.embeddings_folder(bench.settings)
    found = bench.audit = audit(new, installed, bench.encoder, thresholds, bench.questions, others=behind, cache=cache)
    over = [one for one in found.catchments if one.specialty != NOWHERE and one.share > bench.max_moved]
    for one in over:
        yield trouble(
            f"`{one.specialty}` would lose {one.lost} of {one.before} questions ({one.share:.1%}; "
            f"{bench.max_moved:.1%} may move).",
            "Narrow the examples to what is this specialty's alone, or agree with the other's author.",
        )
    for home in found.homes:
        at_home = f"`{home.specialty}`: {home.home} of {home.examples} of its own examples come home"
        if home.share < COMES_HOME:
            places = ", ".join(f"{count} to {place}" for place, count in home.places.items() if place != home.specialty)
            yield warning(f"{at_home}; {places}.", "Its examples are too wide, or too close to another specialty's.")
        else:
            yield ok(f"{at_home} ({home.share:.0%})")
    if found.left_out:
        yield warning(
            f"Not in the audit, since HLO can not route to them: {', '.join(found.left_out)}.",
            "`hlo plugins list` says why.",
        )
    if not bench.others:
        yield ok("No other specialty is installed.")
    elif not over:
        worst = next((one for one in found.catchments if one.specialty != NOWHERE and one.lost), None)
        most = f"; `{worst.specialty}` loses most, {worst.share:.1%}" if worst else ""
        yield ok(f"{len(found.moved)} of {found.questions} questions would go elsewhere than now{most}")
