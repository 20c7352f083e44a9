"""The router: questions in, routes out."""

from __future__ import annotations

from collections.abc import Sequence

from hlo.records import Route
from hlo.routing.batching import BatchingEncoder
from hlo.routing.decision import Thresholds, decide
from hlo.routing.prototypes import Prototypes


class Router:
    """Routes by cosine similarity between a question's embedding and the specialties' prototypes."""

    def __init__(self, encoder: BatchingEncoder, prototypes: Prototypes, thresholds: Thresholds) -> None:
        self._encoder = encoder
        self.prototypes = prototypes
        self._thresholds = thresholds

    async def route(self, question: str) -> Route:
        """Route one question. Raises `EncoderError`."""
        return (await self.route_many([question]))[0]

    async def route_many(self, questions: Sequence[str]) -> tuple[Route, ...]:
        """Route questions, in order. Raises `EncoderError`."""
        vectors = await self._encoder.encode(questions)
        return tuple(decide(scores, self._thresholds) for scores in self.prototypes.scores(vectors))
