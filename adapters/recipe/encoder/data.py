"""What the encoder learns from, read from the repository and from the folders of the command line.

MedQuAD: A. Ben Abacha and D. Demner-Fushman, "A Question-Entailment Approach to Question Answering", BMC Bioinformatics
2019, CC BY 4.0. CLINC150: S. Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction", EMNLP 2019, CC BY 3.0.
"""

from __future__ import annotations

import gzip
import itertools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from adapters.recipe.encoder import terminology
from adapters.recipe.encoder.settings import EVERYDAY_GROUPS
from adapters.recipe.encoder.terminology import Disease, Term

#: The class of everything that is not about health, and the prefix of its groups in the background.
EVERYDAY = "everyday"
#: The part of a plugin's examples where each three questions, one after the other, are about the same thing.
THREE_WAYS = "three_ways"
MOST_SENTENCES = 6
SHORTEST, LONGEST = 30, 300  # characters of a sentence, neither included
GEOMETRY_TERMS, GEOMETRY_PASSAGES = 4000, 3000

Row = TypeVar("Row")


class Labelled(Struct, frozen=True):
    """A row of a routing file. Without a ``question``, it is that of the answer with the same ``id``."""

    focus: str
    id: str = ""
    question: str = ""
    specialty: str | None = None


class Asked(Struct, frozen=True):
    """A row of CLINC150."""

    question: str


class Answered(Struct, frozen=True):
    """A row of MedQuAD."""

    id: str
    focus: str
    question: str
    answer: str


class Passage(Struct, frozen=True):
    """A question of MedQuAD, its disease, and the first sentences of the answer."""

    question: str
    disease: str
    sentences: tuple[str, ...]


class Own(Struct, frozen=True):
    """HLO's own: ``examples`` by specialty, questions by class, and ``groups`` of questions about the same thing."""

    examples: dict[str, list[str]]
    classes: dict[str, list[str]]
    groups: list[tuple[str, ...]]


class Data(Struct, frozen=True):
    """All that is learnt from.

    ``medquad`` holds questions by specialty and disease; ``general`` is what the geometry is kept on.
    """

    own: Own
    medquad: dict[str, dict[str, list[str]]]
    clinc: list[str]
    passages: list[Passage]
    terms: list[Term]
    codes: list[tuple[str, ...]]
    diseases: list[Disease]
    general: list[str]


def read_own(root: Path) -> Own:
    """Read the plugins' examples and the background of a checkout."""
    examples: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    groups: list[tuple[str, ...]] = []
    for path in sorted(root.glob("plugins/*/src/*/examples.toml")):
        parts = _toml(path)
        name = path.parent.name.removeprefix("hlo_")
        classes[name] = parts.pop(THREE_WAYS)
        examples[name] = list(itertools.chain.from_iterable(parts.values()))
        groups += _by(classes[name], 3)
    for name, questions in _toml(root / "hlo/routing/background.toml").items():
        if not name.startswith(EVERYDAY):
            classes[name] = questions
            groups += _by(questions, 2)
        elif int(name.removeprefix(f"{EVERYDAY}_")) <= EVERYDAY_GROUPS:
            classes.setdefault(EVERYDAY, []).extend(questions)
    return Own(examples, classes, groups)


def _toml(path: Path) -> dict[str, list[str]]:
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), dict[str, list[str]])


def _by(questions: list[str], count: int) -> list[tuple[str, ...]]:
    return list(zip(*(iter(questions),) * count, strict=True))


def read_data(root: Path, data: Path, hpo: Path) -> Data:
    """Read everything: a checkout, the folder of MedQuAD and CLINC150, and that of the Human Phenotype Ontology."""
    own = read_own(root)
    answers = _rows(data / "medquad_answers.jsonl.gz", Answered)
    clinc = [row.question for row in _rows(data / "routing_out_of_scope_train.jsonl", Asked)]
    passages = read_passages(answers, held_back(data))
    terms = terminology.read_terms(hpo / "hp.obo")
    phenotypes = terminology.phenotypes(terms)
    questions = itertools.chain.from_iterable(own.classes.values())
    return Data(
        own=own,
        medquad=_by_disease(_rows(data / "routing_medquad_train.jsonl", Labelled), answers),
        clinc=clinc,
        passages=passages,
        terms=[term for term in phenotypes if term.plain or len(term.names) > 1],
        codes=terminology.read_codes(),
        diseases=terminology.read_diseases(hpo / "phenotype.hpoa", terms),
        general=[
            *clinc,
            *questions,
            *(term.names[0] for term in phenotypes[:GEOMETRY_TERMS]),
            *(passage.question for passage in passages[:GEOMETRY_PASSAGES]),
        ],
    )


def missing(data: Path, hpo: Path) -> list[Path]:
    """The files that `read_data` would look for in vain."""
    wanted = [
        data / "medquad_answers.jsonl.gz",
        data / "routing_medquad_train.jsonl",
        data / "routing_medquad_dev.jsonl",
        data / "routing_out_of_scope_train.jsonl",
        hpo / "hp.obo",
        hpo / "phenotype.hpoa",
    ]
    return [path for path in wanted if not path.is_file()]


def held_back(data: Path) -> frozenset[str]:
    """The diseases of MedQuAD's development rows, in lower case."""
    return frozenset(row.focus.lower() for row in _rows(data / "routing_medquad_dev.jsonl", Labelled))


def read_passages(answers: list[Answered], without: frozenset[str]) -> list[Passage]:
    """Questions with the first sentences of their answers, none of a disease in ``without``."""
    passages: list[Passage] = []
    for row in answers:
        pieces = re.split(r"(?<=[.?!])\s+| - ", row.answer)
        sentences = tuple(piece.strip(" -") for piece in pieces if SHORTEST < len(piece.strip()) < LONGEST)
        if sentences and row.focus.lower() not in without:
            passages.append(Passage(_tidy(row.question), row.focus, sentences[:MOST_SENTENCES]))
    return passages


def _by_disease(rows: list[Labelled], answers: list[Answered]) -> dict[str, dict[str, list[str]]]:
    asked: Mapping[str, str] = {row.id: row.question for row in answers}
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.specialty is not None:
            question = row.question or _tidy(asked[row.id])
            found.setdefault(row.specialty, {}).setdefault(row.focus, []).append(question)
    return found


def _tidy(question: str) -> str:
    """Without the blank that MedQuAD's answers have before a question mark."""
    return re.sub(r"\s+\?", "?", question)


def _rows(path: Path, kind: type[Row]) -> list[Row]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return msgspec.json.Decoder(kind).decode_lines(content)
