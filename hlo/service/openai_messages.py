"""OpenAI's messages as a question with the turns before it.

The last message is the question and must be the user's. `system` and `developer` messages do not reach the system's
place, which is the specialty's template's: wherever they stand, they become the question's `instructions`, with no more
weight than words of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from hlo.errors import InvalidRequest
from hlo.records import Turn
from hlo.service.openai_wire import MessageRequest

LATEST = 64
"""Earlier turns that are kept; what came before them is left out, as what does not fit into the prompt is."""


class Conversation(Struct, frozen=True):
    """A question, the turns before it, what the client's program wants; `places`: where the client put each field."""

    text: str
    turns: tuple[Turn, ...]
    instructions: str
    places: Mapping[str, str]


def conversation(messages: Sequence[MessageRequest]) -> Conversation:
    """The question that `messages` end with. Raises `InvalidRequest`."""
    instructions: list[str] = []
    turns: list[Turn] = []
    asked_at: list[int] = []
    first_instruction = 0
    for number, message in enumerate(messages):
        if message.role == "user":
            turns.append(Turn(message.text))
            asked_at.append(number)
        elif message.role == "assistant":
            if not turns:
                raise InvalidRequest(
                    "An answer stands before any question.",
                    field=f"$.messages[{number}]",
                    remedy="Begin with a message of the user's; greetings can be left out.",
                )
            said = "\n\n".join(filter(None, (turns[-1].answer, message.text)))
            turns[-1] = Turn(turns[-1].question, said)
        elif message.text.strip():
            first_instruction = first_instruction if instructions else number
            instructions.append(message.text.strip())
    if not turns or turns[-1].answer or messages[-1].role == "assistant":
        raise InvalidRequest(
            "The last message is not the user's.",
            field=f"$.messages[{len(messages) - 1}]",
            remedy="End with what the user asks; HLO does not continue answers.",
        )
    *earlier, question = turns[-LATEST - 1 :]
    *earlier_at, question_at = asked_at[-LATEST - 1 :]
    places = {f"$.turns[{turn}].question": f"$.messages[{at}].content" for turn, at in enumerate(earlier_at)}
    places |= {
        "$.question": f"$.messages[{question_at}].content",
        "$.instructions": f"$.messages[{first_instruction}].content",
        "$.specialty": "$.model",
    }
    return Conversation(question.question, tuple(earlier), "\n\n".join(instructions), places)
