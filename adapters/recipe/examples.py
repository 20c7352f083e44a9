"""From rows to windows of token ids with loss weights, and from windows to padded batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapters.recipe.medquad import Row
from adapters.recipe.settings import BOS, END_INST, EOS, INST, SPECIALTIES, SPECIALTY_PROMPT

OVERLAP = 128


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids (n,) and, per token, the weight of predicting it (n,); 0 for what is given."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ids (windows, tokens), int64, and weights (windows, tokens), float32.

    Attention is causal, so padding on the right needs no mask.
    """

    ids: torch.Tensor
    weights: torch.Tensor


def windows(tokenizer: Any, question: str, answer: str, length: int, question_weight: float = 0.0) -> list[Window]:
    """Cut one question and answer into windows of at most ``length`` tokens.

    Every window begins with the prompt. A later window repeats the last 128 answer tokens of the
    one before as context, without loss, so that each answer token is predicted exactly once.
    """
    prompt: list[int] = tokenizer.encode(f"{BOS}{INST} {question.strip()}{END_INST}", add_special_tokens=False)
    prompt = prompt[: length // 2 - 1] + prompt[-1:] if len(prompt) > length // 2 else prompt
    reply: list[int] = tokenizer.encode(f" {answer.strip()}{EOS}", add_special_tokens=False)
    room = length - len(prompt)
    cut: list[Window] = []
    start = 0
    while start < len(reply):
        context = min(start, OVERLAP)
        stop = min(len(reply), start + room - context)
        head = [0.0, 0.0] + [0.0 if start else question_weight] * (len(prompt) - 2)
        cut.append(
            Window(
                prompt + reply[start - context : stop],
                head + [0.0] * context + [1.0] * (stop - start),
            )
        )
        start = stop
    return cut


def as_typed(question: str, chooser: random.Random) -> str:
    """A question as people type it: MedQuAD's blank before the mark goes, and half the time the capitals go too."""
    typed = question.replace(" ?", "?")
    return typed.lower() if chooser.random() < 0.5 else typed


def row_windows(tokenizer: Any, rows: list[Row], length: int, question_weight: float = 0.0) -> list[Window]:
    """Windows of rows with the bare question as the user's turn, as it stands."""
    return [window for row in rows for window in windows(tokenizer, row.question, row.answer, length, question_weight)]


def typed_windows(tokenizer: Any, rows: list[Row], length: int, question_weight: float, seed: int) -> list[Window]:
    """Windows of rows for training: half the questions as they stand, half as people type them."""
    chooser = random.Random(seed)  # noqa: S311 - a shuffle
    return [
        window
        for row in rows
        for window in windows(
            tokenizer,
            as_typed(row.question, chooser) if chooser.random() < 0.5 else row.question,
            row.answer,
            length,
            question_weight,
        )
    ]


def specialty_windows(tokenizer: Any, rows: list[Row], specialty: str, length: int, seed: int) -> list[Window]:
    """Windows of an adapter's rows: half bare questions, half in the plugin's prompt template."""
    chooser = random.Random(f"{seed} {specialty}")  # noqa: S311 - a shuffle
    title = SPECIALTIES[specialty].lower()
    cut: list[Window] = []
    for index, row in enumerate(chooser.sample(rows, len(rows))):
        question = as_typed(row.question, chooser) if chooser.random() < 0.5 else row.question
        if index % 2:
            question = SPECIALTY_PROMPT.format(title=title, question=question)
        cut += windows(tokenizer, question, row.answer, length)
    return cut


def batches(pool: list[Window], batch_tokens: int, pad: int, device: torch.device, seed: int | None) -> Iterator[Batch]:
    """Group windows of like length into batches of at most ``batch_tokens`` with padding.

    With a ``seed`` windows and batches come in random order, without one by length.
    """
    chooser = random.Random(seed)  # noqa: S311 - a shuffle
    order = list(range(len(pool)))
    if seed is not None:
        chooser.shuffle(order)
    order.sort(key=lambda index: len(pool[index].ids) // 16 if seed is not None else len(pool[index].ids))
    groups: list[list[int]] = [[]]
    for index in order:
        if groups[-1] and len(pool[index].ids) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    if seed is not None:
        chooser.shuffle(groups)
    for group in filter(None, groups):
        longest = max(len(pool[index].ids) for index in group)
        ids = np.full((len(group), longest), pad, dtype=np.int64)
        weights = np.zeros((len(group), longest), dtype=np.float32)
        for line, index in enumerate(group):
            count = len(pool[index].ids)
            ids[line, :count] = pool[index].ids
            weights[line, :count] = pool[index].weights
        yield Batch(
            torch.from_numpy(ids).to(device, non_blocking=True),
            torch.from_numpy(weights).to(device, non_blocking=True),
        )


def count_batches(pool: list[Window], batch_tokens: int) -> int:
    """How many batches an epoch has, to the nearest that can be known without grouping."""
    return sum(1 for _ in batches(pool, batch_tokens, 0, torch.device("cpu"), 0))
