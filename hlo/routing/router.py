"""The router: questions in, routes out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from hlo.records import Route
from hlo.routing.bank import Bank, Comparison, Group
from hlo.routing.batching import BatchingEncoder, Watch
from hlo.routing.decision import Scale, Thresholds, decide, decide_later

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_REMEMBERED = 8  # earlier turns that are looked at: each is encoded anew, since nothing is kept of a conversation


class Basis(Struct, frozen=True):
    """What a router's thresholds rest on: the settings, or a calibration, which may have been `refused` for a reason.

    A calibration promises that at most `tolerated_error` of the routed questions go wrong, with that `confidence`.
    """

    kind: Literal["settings", "calibration"] = "settings"
    made: date | None = None
    tolerated_error: float | None = None
    confidence: float | None = None
    refused: str | None = None


class Router:
    """Routes by the similarity of a question's embedding to those of the specialties' examples."""

    def __init__(
        self,
        encoder: BatchingEncoder,
        bank: Bank,
        scale: Scale,
        thresholds: Thresholds,
        follow_ups: Group | None = None,
    ) -> None:
        self._encoder = encoder
        self._follow_ups = Bank.of([follow_ups], dimension=follow_ups.examples.shape[1]) if follow_ups else None
        self.bank = bank
        self.scale = scale
        self.thresholds = thresholds
        self.basis = Basis()
        self.calibrated: Mapping[str, tuple[int, ...]] | None = None  # a calibration's histograms, where one holds

    async def route(self, question: str, earlier: Sequence[str] = (), watch: Watch | None = None) -> Route:
        """Route one question, the `earlier` ones of its conversation before it, oldest first. Raises `EncoderError`.

        A later turn stays with the specialty of the turn before it, unless it comes nearer to another.
        """
        if not earlier:
            return (await self.route_many([question], watch))[0]
        route = Route("out_of_scope", None)
        asked = [*earlier[-_REMEMBERED:], question]
        for comparison, follow_up in await self._encoder.encode_then(asked, self._compare_turns, watch):
            if route.specialty is None:
                route = decide(comparison, self.scale, self.thresholds)
            else:
                route = decide_later(comparison, route.specialty, follow_up, self.scale, self.thresholds)
        return route

    async def route_many(self, questions: Sequence[str], watch: Watch | None = None) -> tuple[Route, ...]:
        """Route questions, in order. Raises `EncoderError`."""
        return tuple(decide(one, self.scale, self.thresholds) for one in await self.compare(questions, watch))

    async def compare(self, questions: Sequence[str], watch: Watch | None = None) -> tuple[Comparison, ...]:
        """How close each question comes to the specialties and to the background. Raises `EncoderError`."""
        return tuple(await self._encoder.encode_then(questions, self.bank.compare, watch))

    @property
    def encoder(self) -> str:
        """The name of the encoder."""
        return self._encoder.encoder.name

    def _compare_turns(self, questions: NDArray[np.float32]) -> list[tuple[Comparison, float | None]]:
        """What `compare` gives, each with how near the question comes to what people say when they go on."""
        follow_ups: list[float | None] = [None] * len(questions)
        if self._follow_ups is not None:
            follow_ups = [one.scores[0].score for one in self._follow_ups.compare(questions)]
        return list(zip(self.bank.compare(questions), follow_ups, strict=True))

    @property
    def digests(self) -> Mapping[str, str]:
        """What the specialties' vectors were made from, as SHA-256, by name."""
        return {group.name: group.digest for group in self.bank.specialties}

    @property
    def background_digest(self) -> str:
        """What the background's vectors were made from, as SHA-256."""
        return hashlib.sha256("".join(group.digest for group in self.bank.background).encode()).hexdigest()

    @property
    def texts(self) -> Mapping[str, tuple[str, ...]]:
        """The examples' words, by the name of their group; empty where there are vectors alone."""
        return {group.name: group.texts for group in (*self.bank.specialties, *self.bank.background)}
