"""Urgent-care notices for HLO: recognises emergencies in patients' words, and says so ahead of the answer."""

from hlo import Question, Screening, hookimpl
from hlo_redflags.rules import RULES


@hookimpl
def hlo_question(question: Question) -> Screening | None:
    """Put the notice of the most pressing emergency that the question tells of ahead of its answer."""
    notice = RULES.screen(question.text)
    return Screening(notice=notice) if notice else None
