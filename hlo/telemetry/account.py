"""One question's account: what is known of it is set as it comes to be known, and told once, whatever came of it.

It is told to the metrics, to the log and to the audit log. None of them gets its words.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Literal

from hlo import logs
from hlo.errors import AuditError, InvalidRequest, OutOfScope, QuestionRefused
from hlo.records import AdapterVersion, Route, Usage
from hlo.telemetry.audit import Audit
from hlo.telemetry.metrics import UNKNOWN, Metrics

logger = logging.getLogger("hlo")


class Account:
    """A question (`ask`) or a raw prompt (`generate`), from its coming to its end.

    `label` is the specialty that metrics count it under, `cached` the prompt's tokens that the engine had computed
    before. `caller` is the id of the key that asks. `outcome` is set by `keep`; otherwise it is `abort`, `refused` or
    `error`, by what ended the block.
    """

    def __init__(
        self,
        what: Literal["ask", "generate"],
        text: str,
        model: str,
        metrics: Metrics,
        audit: Audit | None,
        caller: str | None = None,
    ) -> None:
        self.trace_id = ""
        self.label = UNKNOWN
        self.route: Route | None = None
        self.specialty: str | None = None
        self.adapter: AdapterVersion | None = None
        self.usage = Usage(0, 0)
        self.cached = 0
        self.outcome: str | None = None
        self._caller = caller
        self._what = what
        self._text = text
        self._model = model
        self._metrics = metrics
        self._audit = audit
        self._clock = time.perf_counter()

    def __enter__(self) -> Account:
        self._metrics.started()
        return self

    def keep(self, outcome: str) -> None:
        """Record a whole answer, before it is given. Raises `AuditError`: what can not be recorded is not given."""
        self._record(outcome)
        self.outcome = outcome

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.outcome is None:
            self.outcome = outcome_of(error)
            try:
                self._record(self.outcome)
            except AuditError as failed:  # there is nothing that could be kept back
                logger.error("%s", failed)
        self._log(error)
        if self._what == "ask":
            self._metrics.finished(self.label, self.route.status if self.route else UNKNOWN, self.outcome)
        else:
            whole = self.outcome in ("stop", "length")
            self._metrics.completed(self.label, self.outcome, self.usage if whole else None, self.cached)

    def _record(self, outcome: str) -> None:
        audit, self._audit = self._audit, None
        if audit is not None:
            audit.append(
                self._text,
                trace_id=self.trace_id,
                route=self.route,
                specialty=self.specialty,
                adapter=self.adapter,
                model=self._model,
                usage=self.usage,
                outcome=outcome,
                caller=self._caller,
            )

    def _log(self, error: BaseException | None) -> None:
        told = logs.fields(
            trace_id=self.trace_id or None,
            key=self._caller,
            route=self.route.status if self.route else None,
            specialty=self.specialty,
            adapter=self.adapter.engine_name if self.adapter else None,
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            ms=round((time.perf_counter() - self._clock) * 1000, 1),
            error=type(error).__name__ if self.outcome == "error" else None,
        )
        logger.info("%s: %s", self._what, self.outcome, extra=told)


def outcome_of(error: BaseException | None) -> str:
    """What became of a question that has no whole answer."""
    if error is None or isinstance(error, GeneratorExit | asyncio.CancelledError):
        return "abort"
    return "refused" if isinstance(error, InvalidRequest | OutOfScope | QuestionRefused) else "error"
