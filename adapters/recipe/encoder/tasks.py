"""The tasks: what a step draws for each loss."""

from __future__ import annotations

import random

import numpy as np
from msgspec import Struct

from adapters.recipe.encoder.data import EVERYDAY, Data
from adapters.recipe.encoder.settings import (
    ASKED_SHARE,
    CLINC_SHARE,
    EVERYDAY_MEASURED,
    EXAMPLES_SHARE,
    PLAIN_SHARE,
    Batch,
    Member,
)
from adapters.recipe.encoder.terminology import Term
from adapters.recipe.settings import SPECIALTIES

Pairs = list[tuple[str, str]]
_SPECIALTIES = list(SPECIALTIES)


class Classes(Struct, frozen=True):
    """Texts, and the number of each one's class."""

    texts: list[str]
    labels: list[int]


class Passages(Struct, frozen=True):
    """Pairs of a question or disease and a sentence, and which are of the same disease, bool (pairs, pairs)."""

    pairs: Pairs
    alike: np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def classes(data: Data, member: Member, chooser: random.Random) -> Classes:
    """Questions of specialties, of all classes, and of CLINC150, in the shares of the member."""
    names = sorted(data.own.classes)
    drawn = [_question(data, member, names, chooser) for _ in range(member.batch.classes)]
    return Classes([text for text, _ in drawn], [names.index(name) for _, name in drawn])


def _question(data: Data, member: Member, names: list[str], chooser: random.Random) -> tuple[str, str]:
    draw = chooser.random()
    if draw < member.specialties:
        name = chooser.choice(_SPECIALTIES)
        return _of_specialty(data, member, name, chooser), name
    if draw < 1 - CLINC_SHARE:
        name = chooser.choice(names)
        return chooser.choice(data.own.classes[name]), name
    return chooser.choice(data.clinc[EVERYDAY_MEASURED:]), EVERYDAY


def _of_specialty(data: Data, member: Member, name: str, chooser: random.Random) -> str:
    draw = chooser.random()
    if draw < EXAMPLES_SHARE:
        return chooser.choice(data.own.examples[name])
    if draw < EXAMPLES_SHARE + member.medquad:
        diseases = data.medquad[name]
        return chooser.choice(diseases[chooser.choice(list(diseases))])
    return chooser.choice(data.own.classes[name])


def paraphrases(data: Data, batch: Batch, chooser: random.Random) -> Pairs:
    """Two questions about the same thing, of each of some groups."""
    groups = chooser.sample(data.own.groups, batch.groups)
    return [_two(group, chooser) for group in groups]


def passages(data: Data, batch: Batch, chooser: random.Random) -> Passages:
    """A question, or the name of its disease, with a sentence of the answer."""
    rows = chooser.sample(data.passages, batch.passages)
    left = [row.question if chooser.random() < ASKED_SHARE else row.disease for row in rows]
    right = [chooser.choice(row.sentences) for row in rows]
    diseases = np.array([row.disease for row in rows])
    return Passages(list(zip(left, right, strict=True)), diseases[:, None] == diseases[None, :])


def terms(data: Data, batch: Batch, chooser: random.Random) -> Pairs:
    """Two names of a phenotype; two of a code of ICD-10-CM; a rare disease and some of its phenotypes."""
    found = [_names(term, chooser) for term in chooser.sample(data.terms, batch.phenotypes)]
    found += [_two(names, chooser) for names in chooser.sample(data.codes, batch.codes)]
    for disease in chooser.sample(data.diseases, batch.diseases):
        count = min(len(disease.phenotypes), chooser.randint(2, 5))
        found.append((disease.name, ", ".join(chooser.sample(disease.phenotypes, count)).lower()))
    return found


def geometry(data: Data, batch: Batch, chooser: random.Random) -> list[str]:
    """Texts of all kinds."""
    return chooser.sample(data.general, batch.geometry)


def _names(term: Term, chooser: random.Random) -> tuple[str, str]:
    name = chooser.choice(term.names)
    if term.plain and chooser.random() < PLAIN_SHARE:
        return name, chooser.choice(term.plain)
    others = [other for other in term.names if other != name] + [term.definition] * bool(term.definition)
    return name, chooser.choice(others) if others else name


def _two(texts: tuple[str, ...], chooser: random.Random) -> tuple[str, str]:
    first, second = chooser.sample(texts, 2)
    return first, second
