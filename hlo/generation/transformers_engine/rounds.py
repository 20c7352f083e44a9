"""Who waits and who is computed, from round to round."""

from __future__ import annotations

import torch

from hlo.errors import AdapterError
from hlo.generation.transformers_engine.cohort import Cohort, Row
from hlo.generation.transformers_engine.commands import Request
from hlo.generation.transformers_engine.model import Model, out_of_memory
from hlo.records import AdapterVersion


class Rounds:
    """All requests in the worker's hands; at most `max_rows` are computed at a time, the others wait in line."""

    def __init__(self, model: Model, *, max_rows: int) -> None:
        self.model = model
        self._max_rows = max_rows
        self._waiting: list[Row] = []
        self._cohorts: list[Cohort] = []

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return [*self._waiting, *(row for cohort in self._cohorts for row in cohort.rows)]

    def admit(self, request: Request) -> None:
        """Let a request take part. Raises `InvalidRequest` or `AdapterError`."""
        self._waiting.append(Row(request, self.model))

    def unload(self, adapter: AdapterVersion) -> None:
        """Delete an adapter, and fail what uses it against the contract: PEFT would fail all that shares its batch."""
        name = self.model.adapters.unload(adapter)
        for row in self.rows:
            if row.adapter == name:
                row.fail(AdapterError(f"The adapter `{adapter.name}` was unloaded.", remedy="Ask again."))

    def step(self) -> None:
        """One round: a token for every row of every cohort. A batch that memory does not suffice for fails alone."""
        self._found_cohort()
        for cohort in self._cohorts:
            try:
                cohort.step()
            except torch.OutOfMemoryError:
                for row in cohort.rows:
                    row.fail(out_of_memory())
                cohort.rows = []
        self._cohorts = [cohort for cohort in self._cohorts if cohort.rows]

    def _found_cohort(self) -> None:
        """Make a batch of those who wait, as far as there is room."""
        room = self._max_rows - sum(len(cohort.rows) for cohort in self._cohorts)
        self._waiting = [row for row in self._waiting if not row.over]
        if rows := self._waiting[:room]:
            self._cohorts.append(Cohort(rows, self.model))
            del self._waiting[:room]  # not before: no row may stand nowhere when something fails
