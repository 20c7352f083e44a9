"""MedQuAD rows: reading, converting from the public repository, and splitting by disease.

Source: A. Ben Abacha and D. Demner-Fushman, "A Question-Entailment Approach to Question
Answering", BMC Bioinformatics 2019; https://github.com/abachaa/MedQuAD, CC BY 4.0.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from adapters.recipe.rules import specialty_of
from adapters.recipe.settings import SHARED, SPECIALTIES

FEWEST_CHARACTERS = 25
#: Two thousand answers of GARD are a table of symptoms under this sentence; a small model repeats nothing else.
BOILERPLATE = "Human Phenotype Ontology"
TUNING_SHARE = 0.12
GENERAL_TUNING_SHARE = 0.02
HELD_BACK_SHARE = 0.3
#: A conversion gives their rows no label; the rules offer them to the adapters all the same.
UNLABELLED_SOURCES = frozenset({"MPlusHealthTopics", "GARD"})


@dataclass(frozen=True, slots=True)
class Row:
    """One question and answer; ``focus`` is the disease, ``source`` the institute."""

    id: str
    source: str
    focus: str
    qtype: str
    question: str
    answer: str

    @property
    def disease(self) -> str:
        """The disease in lower case, by which everything is split."""
        return self.focus.strip().lower()


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of every purpose. No disease of ``held_back`` is in any other part.

    ``base``: what the base model trains on. ``train``, ``tuning``: an adapter's rows, and the
    slice (by disease) that chooses its learning rate and epochs. ``held_back``: only measured.
    ``base_tuning``: watched while the base model trains.
    """

    base: list[Row]
    base_tuning: list[Row]
    train: dict[str, list[Row]]
    tuning: dict[str, list[Row]]
    held_back: dict[str, list[Row]]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_rows(path: Path) -> list[Row]:
    """Read question/answer rows from JSON lines (``.gz`` or plain), in the order of the file."""
    fields = ("id", "source", "focus", "qtype", "question", "answer")
    return [Row(**{field: str(line[field]) for field in fields}) for line in _lines(path)]


def read_labels(path: Path) -> dict[str, str]:
    """Read ``id`` -> specialty from JSON lines; rows without a specialty are left out."""
    return {line["id"]: line["specialty"] for line in _lines(path) if line.get("specialty")}


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _slice(diseases: Iterable[str], share: float, least: int) -> set[str]:
    ordered = sorted(set(diseases), key=lambda disease: _draw(f"tuning {disease}"))
    return set(ordered[: max(least, round(share * len(ordered)))])


def split(
    rows: list[Row],
    train_labels: dict[str, str],
    held_back_labels: dict[str, str],
    exposure: float,
) -> Splits:
    """Split rows by disease.

    Rows that share a disease, or the very text of an answer, with a held-back row go nowhere else.
    Rows without a label are given one by the rules, for the adapters only. ``exposure`` is the
    fraction of each specialty's labelled training diseases that the base model sees.
    """
    held: dict[str, list[Row]] = {name: [] for name in SPECIALTIES}
    for row in rows:
        if row.id in held_back_labels:
            held[held_back_labels[row.id]].append(row)
    held_diseases = {row.disease for part in held.values() for row in part}
    held_answers = {row.answer for row in rows if row.disease in held_diseases}
    free = [
        row
        for row in rows
        if row.disease not in held_diseases and row.answer not in held_answers and BOILERPLATE not in row.answer
    ]
    labelled: dict[str, list[Row]] = {name: [] for name in SPECIALTIES}
    ruled: dict[str, list[Row]] = {name: [] for name in SPECIALTIES}
    known = {(row.source, row.disease): train_labels[row.id] for row in free if row.id in train_labels}
    for row in free:
        name = train_labels.get(row.id) or known.get((row.source, row.disease))
        if name is not None:
            labelled[name].append(row)
        elif guess := specialty_of(row.source, row.focus):
            ruled[guess].append(row)
    slices = {name: _slice((row.disease for row in part), TUNING_SHARE, 2) for name, part in labelled.items()}
    watched = set().union(*slices.values())
    labelled_diseases = {row.disease for part in labelled.values() for row in part}
    general = {row.disease for row in free} - labelled_diseases
    general_watched = _slice(general, GENERAL_TUNING_SHARE, 1)
    unseen = {disease for disease in labelled_diseases if _draw(f"base {disease}") >= exposure}
    base = [
        row
        for row in free
        if row.disease not in watched and row.disease not in general_watched and row.disease not in unseen
    ]
    return Splits(
        base=base,
        base_tuning=[row for row in free if row.disease in watched | general_watched],
        train={
            name: [row for row in labelled[name] + ruled[name] if row.disease not in slices[name]]
            + [row for row in free if row.disease in SHARED.get(name, ()) and row.source == "NHLBI"]
            for name in SPECIALTIES
        },
        tuning={name: [row for row in labelled[name] if row.disease in slices[name]] for name in SPECIALTIES},
        held_back=held,
    )


def convert(repository: Path) -> list[Row]:
    """Read the XML folders of a clone of the public MedQuAD repository.

    A row's id is ``<folder>/<qid>``; runs of white space become one blank; answers shorter than 25
    characters are left out.
    """
    rows: list[Row] = []
    for path in tqdm(sorted(repository.glob("*/*.xml")), desc="XML", unit="file"):
        document = ElementTree.parse(path).getroot()  # noqa: S314 - a clone the user chose
        for pair in document.iter("QAPair"):
            question, answer = pair.find("Question"), pair.find("Answer")
            if question is None or answer is None:
                continue
            text = " ".join((answer.text or "").split())
            if len(text) < FEWEST_CHARACTERS:
                continue
            rows.append(
                Row(
                    id=f"{path.parent.name}/{question.get('qid', '')}",
                    source=document.get("source", ""),
                    focus=(document.findtext("Focus") or "").strip(),
                    qtype=question.get("qtype", ""),
                    question=" ".join((question.text or "").split()),
                    answer=text,
                )
            )
    return rows


def write_converted(rows: list[Row], folder: Path) -> None:
    """Write the answers file and the two label files (by rule, split by disease) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "medquad_answers.jsonl.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    train: list[str] = []
    held_back: list[str] = []
    for row in rows:
        if row.source in UNLABELLED_SOURCES:
            continue
        specialty = specialty_of(row.source, row.focus)
        if specialty is not None:
            part = held_back if _draw(f"held back {row.disease}") < HELD_BACK_SHARE else train
            part.append(json.dumps({"id": row.id, "specialty": specialty, "focus": row.focus}))
    (folder / "routing_medquad_train.jsonl").write_text("\n".join(train) + "\n")
    (folder / "routing_medquad_dev.jsonl").write_text("\n".join(held_back) + "\n")
