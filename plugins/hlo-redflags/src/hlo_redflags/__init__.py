"""Urgent-care notices for HLO: recognises emergencies in patients' words, and says so ahead of the answer."""

from hlo import Question, hookimpl
from hlo.records import Screening
from hlo_redflags.rules import RULES


@hookimpl
def hlo_question(question: Question) -> Screening | None:
    """Put the notice of the first kind of emergency that the question describes ahead of its answer."""
    found = RULES.find(question.text)
    return Screening(notice=RULES.notice(found[0])) if found else None
