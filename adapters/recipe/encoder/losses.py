"""The three losses, on unit vectors of shape (texts, dimension); each returns a mean."""

from __future__ import annotations

import torch
from torch.nn import functional

from adapters.recipe.encoder.settings import GEOMETRY_SCALE, PAIR_TEMPERATURE

_NEVER = -1e4  # a similarity that counts for nothing, and whose gradient is a number


def classes(vectors: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Soft nearest neighbours: each text shall have its own class, int64 of shape (texts,), about it, anywhere.

    The say of all neighbours of the class is summed before the logarithm, so that a text may lie near to a few of its
    class and far from the rest: a specialty is many islands, and drawing them together costs what lies between.
    """
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    alike = (labels[:, None] == labels[None, :]) & ~itself
    similar = (vectors @ vectors.T / temperature).masked_fill(itself, _NEVER)
    own = torch.logsumexp(similar.masked_fill(~alike, _NEVER), 1)
    return (torch.logsumexp(similar, 1) - own)[alike.any(1)].mean()


def pairs(left: torch.Tensor, right: torch.Tensor, alike: torch.Tensor | None = None) -> torch.Tensor:
    """Each text shall find its partner among all others of the batch, in both directions.

    ``alike``, bool of shape (pairs, pairs), says which others are no mistake, and are left out.
    """
    similar = left @ right.T / PAIR_TEMPERATURE
    partner = torch.arange(len(left), device=left.device)
    if alike is not None:
        itself = torch.eye(len(left), dtype=torch.bool, device=left.device)
        similar = similar.masked_fill(alike & ~itself, _NEVER)
    return (functional.cross_entropy(similar, partner) + functional.cross_entropy(similar.T, partner)) / 2


def geometry(vectors: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """All cosines among texts shall stay what they were before the training."""
    return ((vectors @ vectors.T - before @ before.T) ** 2).mean() * GEOMETRY_SCALE
