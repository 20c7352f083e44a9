"""Trains a member: the encoder's layers, with its embeddings frozen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
from transformers import AutoModel
from transformers.utils import logging

from adapters.recipe.encoder import losses, tasks
from adapters.recipe.encoder.data import Data
from adapters.recipe.encoder.settings import (
    LARGEST_GRADIENT,
    LEAST_RATE,
    MAX_TOKENS,
    WARMUP_STEPS,
    WEIGHT_DECAY,
    Member,
)
from adapters.recipe.training import autocast

#: The beginning of the names of the weights that are trained.
TRAINED = "encoder."
_TOLD = 20  # steps from one number in the progress bar to the next: each makes the device wait

Layers = dict[str, torch.Tensor]


class Encoder:
    """A transformer and its tokenizer: texts to unit vectors, by mean pooling, on a device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        logging.set_verbosity_error()  # it tells of the pooler's weights, which sentence encoders do not use
        logging.disable_progress_bar()
        self.device = device
        self.model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, add_pooling_layer=False).to(device)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors, float32, shape (texts, dimension); a text is cut after `MAX_TOKENS`."""
        rows = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([row.ids for row in rows]).to(self.device)
        mask = torch.tensor([row.attention_mask for row in rows]).to(self.device)
        with autocast(self.device):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        return functional.normalize((hidden.float() * weight).sum(1) / weight.sum(1), dim=1)

    def pairs(self, pairs: tasks.Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of all left texts, and of all right ones."""
        left, right = zip(*pairs, strict=True)
        vectors = self((*left, *right))
        return vectors[: len(pairs)], vectors[len(pairs) :]


def train_member(base: Path, data: Data, member: Member, device: torch.device) -> Layers:
    """Fine-tune the encoder in ``base`` as a member says; its layers' weights, float32, on the CPU."""
    torch.manual_seed(member.seed)
    torch.set_float32_matmul_precision("high")
    chooser = random.Random(member.seed)  # noqa: S311 - a shuffle
    encoder, before = Encoder(base, device), Encoder(base, device)
    encoder.model.train()
    encoder.model.embeddings.requires_grad_(False)
    before.model.eval()
    trained = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=member.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, member.steps))
    with tqdm(total=member.steps, desc=member.name, unit="step") as bar:
        for step in range(member.steps):
            loss = step_loss(encoder, before, data, member, chooser)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % _TOLD == 0 or step + 1 == member.steps:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    weights = encoder.model.state_dict()
    return {name: weight.float().cpu() for name, weight in weights.items() if name.startswith(TRAINED)}


def step_loss(encoder: Encoder, before: Encoder, data: Data, member: Member, chooser: random.Random) -> torch.Tensor:
    """Draw a batch of every task that the member has, and add up the losses."""
    drawn = tasks.classes(data, member, chooser)
    labels = torch.tensor(drawn.labels, device=encoder.device)
    loss = member.class_weight * losses.classes(encoder(drawn.texts), labels, member.temperature)
    loss = loss + losses.pairs(*encoder.pairs(tasks.paraphrases(data, member.batch, chooser)))
    if member.answer_weight:
        passages = tasks.passages(data, member.batch, chooser)
        alike = torch.from_numpy(passages.alike).to(encoder.device)
        loss = loss + member.answer_weight * losses.pairs(*encoder.pairs(passages.pairs), alike)
    if member.term_weight:
        names = encoder.pairs(tasks.terms(data, member.batch, chooser))
        loss = loss + member.term_weight * losses.pairs(*names)
    texts = tasks.geometry(data, member.batch, chooser)
    vectors = encoder(texts)
    with torch.no_grad():
        unchanged = before(texts)
    return loss + losses.geometry(vectors, unchanged)


def _rate(step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak: it warms up, and falls in a straight line."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(LEAST_RATE, 1 - step / steps)
