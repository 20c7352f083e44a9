"""What plugins say of a question before it is routed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hlo.edition import Edition
from hlo.errors import QuestionRefused
from hlo.records import Question, Route, Screening
from hlo.telemetry import spans
from hlo.telemetry.tracing import Span, Tracing

Screenings = Sequence[tuple[str, Screening]]
"""Names of plugins, and what each said."""


async def screen(question: Question, edition: Edition, tracing: Tracing, within: Span) -> Screenings:
    """What the plugins say of a question, in a span of its own where any wants to. Raises `QuestionRefused`."""
    if not edition.hooks.screens:
        return ()
    with tracing.span("screen", within) as span:
        failed = partial(spans.plugin_failed, span)
        screened = await edition.hooks.screen(question, tuple(edition.catalog.entries), failed)
        if noticing := [plugin for plugin, said in screened if said.notice]:
            span.set_attribute("hlo.notices", noticing)
        for plugin, said in screened:
            if said.refusal:
                span.set_attribute("hlo.refused_by", plugin)
                raise QuestionRefused(said.refusal, remedy=f"The plugin `{plugin}` decided so.")
        return screened


async def screen_each(questions: Sequence[str], edition: Edition) -> list[Screenings]:
    """What the plugins say of each question, one after the other: their time is reckoned for each by itself."""
    names = tuple(edition.catalog.entries)
    return [await edition.hooks.screen(Question(question), names) for question in questions]


def pinned(screened: Screenings) -> Route | None:
    """The route that a plugin asked for; the first one's counts."""
    return next(
        (Route("routed", said.specialty, pinned_by=plugin) for plugin, said in screened if said.specialty), None
    )
