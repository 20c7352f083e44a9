"""Every number and name of the recipe in one place: model shape, training, files, specialties."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BASE_NAME = "hlo-demo-10m"

#: name -> title, as the specialty plugins spell them.
SPECIALTIES: dict[str, str] = {
    "cardiology": "Cardiology",
    "oncology": "Oncology",
    "neurology": "Neurology",
    "pulmonology": "Pulmonology",
    "hematology": "Hematology",
    "endocrinology": "Endocrinology",
    "nephrology": "Nephrology",
    "gastroenterology": "Gastroenterology",
    "infectious_disease": "Infectious disease",
    "genetics": "Genetics",
    "geriatrics": "Geriatrics",
}

#: Diseases that a second specialty's adapter learns too: what endocrinologists treat to spare the heart.
SHARED: dict[str, tuple[str, ...]] = {
    "endocrinology": ("atherosclerosis", "coronary heart disease", "coronary heart disease risk factors"),
}

#: The prompt template of the specialty plugins; half of an adapter's examples use it.
SPECIALTY_PROMPT = "Answer this {title} question for a patient, plainly and carefully.\n\n{question}"

SPECIAL_TOKENS: tuple[str, ...] = ("<s>", "</s>", "<pad>", "<unk>", "[INST]", "[/INST]")
BOS, EOS, PAD, UNK, INST, END_INST = SPECIAL_TOKENS

TARGET_MODULES: tuple[str, ...] = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Shape of the base model (a Mistral decoder); the defaults give 9.97 million parameters."""

    vocab: int = 8192
    hidden: int = 256
    layers: int = 10
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    positions: int = 1024


@dataclass(frozen=True, slots=True)
class BaseTraining:
    """How the base model is trained. Batches are counted in tokens, padding included.

    ``exposure`` is the fraction of each specialty's training diseases that the base model sees;
    the adapters see all of them.
    """

    epochs: int = 14
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    batch_tokens: int = 32768
    warmup_steps: int = 100
    question_weight: float = 0.1
    exposure: float = 0.0
    seed: int = 20


@dataclass(frozen=True, slots=True)
class LoraTraining:
    """How an adapter is trained; (learning rate, epochs) is chosen on a tuning slice by disease.

    An adapter learns only from diseases that the base model has not seen; training again on what the
    base model knows by heart overfits.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.1
    weight_decay: float = 0.01
    learning_rates: tuple[float, ...] = (1e-3, 1.5e-3)
    epochs: tuple[int, ...] = (4, 12)
    steps_per_epoch: int = 10
    min_batch_tokens: int = 2048
    max_batch_tokens: int = 8192
    max_tokens: int = 400_000
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Files:
    """Where the recipe reads and writes."""

    data: Path
    model: Path
    adapters: Path
    pairs: Path

    @property
    def answers(self) -> Path:
        """The question/answer rows, JSON lines, gzipped or not."""
        packed = self.data / "medquad_answers.jsonl.gz"
        return packed if packed.exists() else self.data / "medquad_answers.jsonl"

    @property
    def train_labels(self) -> Path:
        """``id`` -> ``specialty`` of the rows that may be trained on, JSON lines."""
        return self.data / "routing_medquad_train.jsonl"

    @property
    def held_back_labels(self) -> Path:
        """``id`` -> ``specialty`` of the rows that are only measured, JSON lines."""
        return self.data / "routing_medquad_dev.jsonl"

    @property
    def perplexity(self) -> Path:
        """The measured table."""
        return self.model / "perplexity.json"
