"""Every number of the encoder's recipe: the three members, their batches, and what was left out of the data."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

NAME = "hlo-encoder"
BASE = "sentence-transformers/all-MiniLM-L6-v2"

#: The groups of ``hlo/routing/background.toml`` that existed at training time: everyday_01 to everyday_22.
EVERYDAY_GROUPS = 22
#: CLINC150 rows that the class task leaves out: they were the background when settings were measured.
EVERYDAY_MEASURED = 300

#: Tokens after which a text is cut in training; the encoder itself takes 256.
MAX_TOKENS = 80
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 100
#: What the learning rate falls to, as a share of its peak.
LEAST_RATE = 0.02
LARGEST_GRADIENT = 1.0

#: Of a specialty's questions in the class task, those from its plugin's examples. The rest that ``Member.medquad``
#: leaves are the plugin's ``three_ways``.
EXAMPLES_SHARE = 0.3
#: Of the questions of the class task, those from CLINC150, where ``Member.specialties`` leaves room for them.
CLINC_SHARE = 0.1
#: Of the questions of the answer task, those asked in full; of the others, only the disease's name is taken.
ASKED_SHARE = 0.6
#: Of the phenotypes that have a layperson's name, those paired with it.
PLAIN_SHARE = 0.8

#: The temperature of all pairs; ``Member.temperature`` is that of the classes.
PAIR_TEMPERATURE = 0.05
#: Brings the mean squared difference of cosines to the size of the other losses.
GEOMETRY_SCALE = 50.0


class Batch(Struct, frozen=True, kw_only=True):
    """How many of each a step takes: questions, groups, passages, pairs of names, texts."""

    classes: int = 256
    groups: int = 128
    passages: int = 128
    phenotypes: int = 80
    codes: int = 40
    diseases: int = 40
    geometry: int = 128


class Member(Struct, frozen=True, kw_only=True):
    """One training run. ``class_weight``, ``answer_weight`` and ``term_weight`` are of their tasks' losses.

    The paraphrases and the geometry weigh 1 in every member. ``specialties`` is the share of the class task's questions
    that belong to a specialty, drawn evenly; ``medquad`` the share of those that come from MedQuAD.
    """

    name: str
    seed: int
    steps: int
    learning_rate: float
    temperature: float
    specialties: float
    medquad: float
    class_weight: float = 1.0
    answer_weight: float = 0.0
    term_weight: float = 0.0
    batch: Batch = Batch()


MEMBERS: tuple[Member, ...] = (
    Member(name="specialties", seed=4, steps=500, learning_rate=2e-5, temperature=0.08, specialties=1.0, medquad=0.7),
    Member(name="all classes", seed=5, steps=800, learning_rate=3e-5, temperature=0.08, specialties=0.6, medquad=0.7),
    Member(
        name="with terms",
        seed=6,
        steps=700,
        learning_rate=5e-5,
        temperature=0.07,
        specialties=0.8,
        medquad=0.6,
        class_weight=0.7,
        answer_weight=0.3,
        term_weight=0.3,
    ),
)


def tiny(member: Member) -> Member:
    """A few small steps of a member, to try the whole path on a CPU."""
    batch = Batch(classes=32, groups=16, passages=16, phenotypes=10, codes=5, diseases=5, geometry=16)
    return replace(member, steps=6, batch=batch)
