"""What training the base model and training an adapter share: loss, loop, measurement."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from adapters.recipe.examples import Batch, Window, batches, count_batches


@dataclass(frozen=True, slots=True)
class Loop:
    """One run of the training loop. The learning rate warms up, then falls as a cosine to 5 %."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_tokens: int
    warmup_steps: int
    seed: int
    name: str


def pick_device(wanted: str) -> torch.device:
    """The device to work on: "cuda", "cpu", or "auto" for CUDA where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrix products on CUDA and on processors with AMX, float32 elsewhere."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if device.type == "cuda" or amx():
        cast: AbstractContextManager[Any] = torch.autocast(device.type, dtype=torch.bfloat16)
        return cast
    return nullcontext()


def weighted_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of weight x negative log-likelihood (nats) over the batch, and the sum of weights."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1].float()
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    each = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")
    return (each * weights.reshape(-1)).sum(), weights.sum()


def mean_loss(
    model: Any,
    pool: list[Window],
    pad: int,
    device: torch.device,
    batch_tokens: int = 4096,
    fast: bool = False,
) -> float:
    """Mean negative log-likelihood, nats per weighted token, over windows.

    In float32, or with ``fast`` in the precision that training uses on this machine.
    """
    was_training = model.training
    model.eval()
    total = count = 0.0
    for batch in batches(pool, batch_tokens, pad, device, None):
        with torch.no_grad(), autocast(device) if fast else nullcontext():
            loss, weight = weighted_loss(model, batch)
        total += float(loss)
        count += float(weight)
    model.train(was_training)
    return total / max(count, 1.0)


def run_loop(model: Any, pool: list[Window], loop: Loop, pad: int, device: torch.device, watch: list[Window]) -> float:
    """Train a model's trainable parameters in place; returns the mean loss on ``watch`` (nats)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": loop.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=loop.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")
    total = loop.epochs * count_batches(pool, loop.batch_tokens) + 1

    def rate(step: int) -> float:
        if step < loop.warmup_steps:
            return (step + 1) / loop.warmup_steps
        done = (step - loop.warmup_steps) / max(1, total - loop.warmup_steps)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    with tqdm(total=total - 1, desc=loop.name, unit="step", mininterval=5) as bar:
        for epoch in range(loop.epochs):
            for batch in batches(pool, loop.batch_tokens, pad, device, loop.seed + epoch):
                with autocast(device):
                    loss, weight = weighted_loss(model, batch)
                (loss / weight.clamp(min=1.0)).backward()
                torch.nn.utils.clip_grad_norm_(trainable, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                bar.update(1)
            if watch and (epoch + 1 == loop.epochs or (epoch + 1) % 4 == 0):
                measured = mean_loss(model, watch, pad, device)
                bar.set_postfix(epoch=epoch + 1, tuning_perplexity=f"{math.exp(measured):.2f}")
                print(f"{loop.name} epoch {epoch + 1}: {math.exp(measured):.3f}", flush=True)
    return mean_loss(model, watch, pad, device) if watch else math.nan
