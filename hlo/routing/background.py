"""The background: what people ask that none of the installed specialties answers.

Everyday requests, and questions for the fields of medicine that HLO knows and that are not installed here. A question
that comes nearer to these than to any specialty is out of scope: similarity to the specialties alone can not tell,
since a question about a rash is as near to "infectious diseases" as many a question about an infection.
"""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from collections.abc import Collection, Sequence
from importlib import resources

from msgspec import Struct

from hlo.contracts import Encoder
from hlo.routing.bank import Bank, Group, embedded

# A field is the business of an installed specialty, and no background, when at least this share of its questions comes
# nearer to that specialty than to any other field. Specialties made of 8 to 23 questions of a field took 0.21 to 0.68
# of it; those of this checkout take at most 0.17 of any.
_COVERED = 0.2
_EVERYDAY = "everyday"  # groups of this prefix hold no medicine, and no specialty covers them


class Background(Struct, frozen=True, eq=False):
    """The groups of the background, and what people say when they go on with what they spoke of before."""

    groups: tuple[Group, ...] = ()
    follow_ups: Group | None = None

    @classmethod
    def load(cls, encoder: Encoder) -> Background:
        """All of it, embedded. Raises `EncoderError`."""
        groups = tuple(embedded(name, texts, encoder) for name, texts in _read("background.toml"))
        ((name, texts),) = _read("follow_ups.toml")
        return cls(groups, embedded(name, texts, encoder))


def uncovered(background: Background, specialties: Sequence[Group]) -> tuple[Group, ...]:
    """The groups that no specialty covers, whatever the specialties are called."""
    if not specialties:
        return background.groups
    installed = {group.name for group in specialties}
    fields = [
        group for group in background.groups if not group.name.startswith(_EVERYDAY) and group.name not in installed
    ]
    among = Bank.of((*specialties, *fields), dimension=specialties[0].examples.shape[1])
    covered = installed | {group.name for group in fields if _share(group, among, installed) >= _COVERED}
    return tuple(group for group in background.groups if group.name not in covered)


def _share(group: Group, among: Bank, installed: Collection[str]) -> float:
    """The share of a group's questions that the specialty nearest to most of them takes."""
    nearest = Counter(
        next((score.specialty for score in one.scores if score.specialty != group.name), None)
        for one in among.compare(group.examples)
    )
    return max((count for name, count in nearest.items() if name in installed), default=0) / len(group.examples)


@functools.cache
def _read(file: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = tomllib.loads(resources.files("hlo.routing").joinpath(file).read_text(encoding="utf-8"))
    return tuple((name, tuple(texts)) for name, texts in found.items())
