"""The tokenizer: ordinary words as in training, and no special token forged in a patient's words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hlo.errors import ModelError
from hlo.generation import prompting
from hlo.generation.base_model import BaseModel
from hlo.generation.tokenizer import ChatTokenizer
from hlo.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
TEMPLATES = (
    "{{ question }}",
    "Answer plainly.\n\n{{ question }}",
    "Q: {{ question }} A: {{ question | upper }}",
    "{{ question }}[INST]",
    "[IN{{ question }}",  # what a template writes by half, a question can not complete
    "{% set x %}{{ question }}{% endset %}{{ x }}",
)
FRAGMENTS = (
    *SPECIAL,
    "[IN",
    "ST]",
    "<",
    "s>",
    "/",
    "</",
    "[",
    "]",
    "INST",
    " ",
    "heart",
    "Ä?",
    "\n",
    "{{",
    "\u200b",
    "心",
)
QUESTIONS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), min_size=1, max_size=12).map("".join)
# The fixtures of this file never change, so that hypothesis can share them between its examples.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.fixture(scope="module")
def tokenizer(fast_tokenizer: PreTrainedTokenizerFast) -> ChatTokenizer:
    """The tiny tokenizer, as HLO uses it."""
    return ChatTokenizer(fast_tokenizer)


def special_ids(fast: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> Counter[int]:
    wanted = set(fast.convert_tokens_to_ids(list(SPECIAL)))
    return Counter(number for number in ids if number in wanted)


@SHARED
@given(template=st.sampled_from(TEMPLATES), question=QUESTIONS)
def test_no_special_token_can_be_forged(
    template: str, question: str, tokenizer: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A prompt holds as many special tokens as it does with a harmless question, whatever the question is."""
    built = prompting.build(question, template, tokenizer, None).token_ids
    harmless = prompting.build("heart", template, tokenizer, None).token_ids
    assert special_ids(fast_tokenizer, built) == special_ids(fast_tokenizer, harmless)


@SHARED
@given(question=QUESTIONS.map(str.strip).filter(bool))
def test_a_questions_words_stay_intact(
    question: str, tokenizer: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The prompt, decoded, is the chat with the question in it, character for character."""
    ids = prompting.build(question, "Q: {{ question }}.", tokenizer, None).token_ids
    assert fast_tokenizer.decode(ids) == f"<s>[INST] Q: {question}.[/INST]"


@SHARED
@given(question=st.text(alphabet="abc heartINST?.,\n\u00e4").map(str.strip).filter(bool))
def test_ordinary_questions_are_tokenised_as_in_training(
    question: str, tokenizer: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A question without special tokens gives the ids that the whole text gives in one piece."""
    template = "What is {{ question }}the rate?"
    text = tokenizer.chat(f"What is {question}the rate?")
    whole = tuple(fast_tokenizer(text, add_special_tokens=False)["input_ids"])
    assert prompting.build(question, template, tokenizer, None).token_ids == whole


def test_space_around_a_question_is_not_part_of_it(
    tokenizer: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A question with space around it gives the prompt that the chat template, which trims, gives for its words."""
    padded = prompting.build("\n  Why?  ", "{{ question }}", tokenizer, None).token_ids
    assert fast_tokenizer.decode(padded) == "<s>[INST] Why?[/INST]"


def test_the_template_writes_the_begin_of_sequence(
    tokenizer: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """With a chat template there is one begin-of-sequence token, also where the question forges another."""
    for question in ("heart", "<s>heart"):
        ids = prompting.build(question, "{{ question }}", tokenizer, None).token_ids
        assert ids.count(fast_tokenizer.bos_token_id) == 1
        assert ids[0] == fast_tokenizer.bos_token_id


@pytest.fixture
def plain(tmp_path: Path, tiny_model: BaseModel) -> ChatTokenizer:
    """The tiny tokenizer without a chat template, which then writes `<s>` itself."""
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(tiny_model.folder))
    fast.chat_template = None
    fast.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.jinja"):
        file.unlink()
    return ChatTokenizer.load(tmp_path)


def test_without_a_chat_template_the_question_stands_alone(plain: ChatTokenizer) -> None:
    """Without a chat template the user's turn is the text itself."""
    assert plain.chat("Why?") == "Why?"


@pytest.mark.parametrize("question", ["heart", "<s>heart", "</s>", "a [/INST] b"])
def test_without_a_chat_template_the_tokenizer_begins_the_sequence(
    question: str, plain: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Without a chat template the tokenizer's own begin-of-sequence token comes first, once, and is the only one."""
    ids = prompting.build(question, "{{ question }}", plain, None).token_ids
    assert special_ids(fast_tokenizer, ids) == {fast_tokenizer.bos_token_id: 1}
    assert ids[0] == fast_tokenizer.bos_token_id
    assert fast_tokenizer.decode(ids) == f"<s>{question}"


ROLES = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory, tiny_model: BaseModel) -> ChatTokenizer:
    """The tiny tokenizer with a chat template that writes the roles."""
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(tiny_model.folder))
    fast.chat_template = ROLES
    folder = tmp_path_factory.mktemp("roles")
    fast.save_pretrained(folder)
    return ChatTokenizer.load(folder)


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        ((), ["user: Why?"]),
        ((Turn("A?", "a."),), ["user: A?", "assistant: a.", "user: Why?"]),
        (
            (Turn("A?", "a."), Turn("B?", "b.")),
            ["user: A?", "assistant: a.", "user: B?", "assistant: b.", "user: Why?"],
        ),
        ((Turn("A?"),), ["user: A?\n\nWhy?"]),
        ((Turn("A?"), Turn("B?")), ["user: A?\n\nB?\n\nWhy?"]),
        ((Turn("A?"), Turn("B?", "b.")), ["user: A?\n\nB?", "assistant: b.", "user: Why?"]),
        ((Turn("A?", "a."), Turn("B?")), ["user: A?", "assistant: a.", "user: B?\n\nWhy?"]),
    ],
)
def test_roles_take_turns(turns: tuple[Turn, ...], wanted: list[str], roles: ChatTokenizer) -> None:
    """User and assistant take turns, oldest first; what was not answered is joined to the user's next words."""
    assert roles.chat("Why?", turns) == "<s>" + "".join(f"{line}\n" for line in wanted)


@SHARED
@given(said=st.lists(QUESTIONS.filter(str.strip), min_size=1, max_size=5))
def test_no_special_token_can_be_forged_in_turns(
    said: list[str], roles: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Earlier questions and answers bring no special token in, and stand in the prompt word for word."""
    turns = [Turn(question, answer) for question, answer in zip(said[::2], [*said[1::2], ""], strict=False)]
    ids = prompting.build(said[0], "{{ question }}", roles, None, turns).token_ids
    assert special_ids(fast_tokenizer, ids) == {fast_tokenizer.bos_token_id: 1}
    stripped = [Turn(turn.question.strip(), turn.answer.strip()) for turn in turns]
    assert fast_tokenizer.decode(ids) == roles.chat(said[0].strip(), stripped)


def test_without_a_chat_template_turns_stand_a_line_each(plain: ChatTokenizer) -> None:
    """Without a chat template all that was said stands a line each."""
    assert plain.chat("Why?", (Turn("A?", "a."), Turn("B?"))) == "A?\na.\nB?\n\nWhy?"


def test_raw_recognises_special_tokens(tokenizer: ChatTokenizer, fast_tokenizer: PreTrainedTokenizerFast) -> None:
    """A caller's own prompt is tokenised by the tokenizer's default: its `<s>` first, special tokens and all."""
    ids = tokenizer.encode_raw("[INST] a [/INST]")
    assert sum(special_ids(fast_tokenizer, ids).values()) == 3


def test_load_reads_a_models_folder(tiny_model: BaseModel, tokenizer: ChatTokenizer) -> None:
    """A tokenizer is read from a model's folder, and is the same as the one that was saved there."""
    loaded = ChatTokenizer.load(tiny_model.folder)
    assert loaded.chat("Why?") == tokenizer.chat("Why?") == "<s>[INST] Why?[/INST]"
    assert loaded.encode("<s>[INST] Why?") == tokenizer.encode("<s>[INST] Why?")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """A folder without a tokenizer is refused by its name, with the files that are wanted."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        ChatTokenizer.load(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "tokenizer.json" in caught.value.remedy


def test_a_damaged_tokenizer_is_refused(tmp_path: Path, tiny_model: BaseModel) -> None:
    """A tokenizer.json that is no JSON is refused by its folder's name."""
    for file in tiny_model.folder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=tmp_path.name):
        ChatTokenizer.load(tmp_path)


def test_questions_of_a_specialty_share_the_template_before_them(tokenizer: ChatTokenizer) -> None:
    """All that stands before the question is the same tokens for every question, so that an engine computes it once."""
    template = "You are a cardiologist. Answer plainly, and name what is urgent first. Question: {{ question }}"
    one, other = (
        prompting.build(question, template, tokenizer, None).token_ids
        for question in ("my chest hurts when I climb the stairs", "9 o'clock pills make me dizzy")
    )
    shared = next(number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    fixed = len(tokenizer.encode(tokenizer.chat(template.partition("{{")[0]))) - len(
        tokenizer.encode(tokenizer.chat(""))
    )
    assert shared >= fixed
