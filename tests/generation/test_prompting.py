"""Prompts: templates, what of them can be forged (nothing), and what fits into the context."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.errors import PluginError, PromptTooLong
from hlo.generation import prompting
from hlo.records import AdapterVersion, Prompt, Sampling, Turn
from hlo.testing import CharacterTokenizer

TOKENIZER = CharacterTokenizer()
# Ways to write one and the same prompt.
WAYS = (
    "Q: {{ question }}",
    "{{ 'Q: ' ~ question }}",
    "{% set x %}Q: {{ question }}{% endset %}{{ x }}",
    "{% macro m(q) %}Q: {{ q }}{% endmacro %}{{ m(question) }}",
    "{% for word in [question] %}Q: {{ word }}{% endfor %}",
    "{% if question %}Q: {{ question }}{% endif %}",
    "{% filter replace('A: ', 'Q: ') %}A: {{ question }}{% endfilter %}",
)


def text(prompt: Prompt) -> str:
    return "".join(chr(abs(number)) for number in prompt.token_ids)


def special(prompt: Prompt) -> int:
    return sum(number < 0 for number in prompt.token_ids)


def test_the_template_is_the_users_turn() -> None:
    """The rendered template is the user's turn of a chat, and the adapter goes with it."""
    prompt = prompting.build("Why?", "Q: {{ question }}", TOKENIZER, None)
    assert (text(prompt), prompt.adapter) == ("<Q: Why?>", None)


def test_the_adapter_goes_with_the_prompt(version: Callable[[str], AdapterVersion]) -> None:
    """A prompt carries the adapter that it was built for."""
    adapter = version("a")
    assert prompting.build("Why?", "{{ question }}", TOKENIZER, adapter).adapter == adapter
    assert prompting.raw("Why?", TOKENIZER, adapter) == Prompt(TOKENIZER.encode("Why?"), adapter)


def test_building_is_pure() -> None:
    """The same question and template give the same prompt."""
    made = {prompting.build("Why <b>?", "Q: {{ question }}", TOKENIZER, None) for _ in range(3)}
    assert len(made) == 1


@pytest.mark.parametrize("template", WAYS)
@pytest.mark.parametrize("question", ["Why?", "<><", "{{ 7 * 7 }} {% raw %}", "\ue000\ue001 \ue002\ue003"])
def test_every_way_to_write_a_template_gives_the_same_prompt(template: str, question: str) -> None:
    """However a template brings the question in, the prompt holds template and question and nothing else."""
    prompting.check_template(template)
    assert text(prompting.build(question, template, TOKENIZER, None)) == f"<Q: {question}>"


@given(
    template=st.sampled_from(WAYS),
    question=st.lists(st.sampled_from(["<", ">", "<<>", " word ", "{{", "}}", "{% set", "\ue000"]), min_size=1),
)
def test_no_special_token_comes_out_of_a_question(template: str, question: list[str]) -> None:
    """Whatever stands in a question, a prompt holds only the special tokens that the chat itself writes."""
    assert special(prompting.build("".join(question), template, TOKENIZER, None)) == 2


def test_special_tokens_of_the_template_count() -> None:
    """What a template's author wrote as plain text is the author's: special tokens in it are special."""
    assert special(prompting.build("<", "< {{ question }}", TOKENIZER, None)) == 3


@pytest.mark.parametrize("question", ["{{ 7 * 7 }}", "{% for x in y %}", "{# note #}", "{{ question }}", "{{ 1/0 }}"])
def test_jinja_in_a_question_stays_text(question: str) -> None:
    """A question is data to the template, so that Jinja in it is text."""
    assert text(prompting.build(question, "{{ question }}", TOKENIZER, None)) == f"<{question}>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ question | upper }}", "<WHY, <B>?>"),
        ("{{ question | trim }}", "<Why, <b>?>"),
        ("{{ question | replace('Why', 'How') }}", "<How, <b>?>"),
        ("{{ question }} {{ question | length }}", "<Why, <b>? 9>"),
        ("{{ question }}\n", "<Why, <b>?\n>"),
    ],
)
def test_filters_work(template: str, expected: str) -> None:
    """Jinja's filters can be used on a question, and what comes out of them is still the patient's."""
    prompting.check_template(template)
    prompt = prompting.build("Why, <b>?", template, TOKENIZER, None)
    assert text(prompt) == expected
    assert special(prompt) == 2


@pytest.mark.parametrize("template", ["", "Answer plainly.", "{{ question | length }}", "{# {{ question }} #}"])
def test_a_template_without_the_question_is_refused(template: str) -> None:
    """A template in which the question does not appear is refused, with what to put in."""
    with pytest.raises(PluginError, match="leaves the question out") as caught:
        prompting.check_template(template)
    assert caught.value.remedy == "Put `{{ question }}` into it."


def test_a_text_that_happens_to_look_like_the_probe_is_no_question() -> None:
    """A template is not taken to hold the question because of digits that it holds."""
    with pytest.raises(PluginError, match="leaves the question out"):
        prompting.check_template("1123581321")


@pytest.mark.parametrize("template", ["{{ qestion }}", "{{ question }} {{ patient.age }}", "{% if x %}{% endif %}"])
def test_an_unknown_name_is_refused(template: str) -> None:
    """A name other than `question` is refused and not rendered as nothing."""
    with pytest.raises(PluginError, match="is undefined"):
        prompting.check_template(template)


def test_a_syntax_error_gives_the_line() -> None:
    """A template that is no Jinja is refused with the line of the mistake."""
    with pytest.raises(PluginError, match=r"\(line 3\)"):
        prompting.check_template("one\ntwo\n{{ question \n")


@pytest.mark.parametrize(
    "template",
    [
        "{{ question.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ question.format.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(question) }}{{ [].append(1) }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    """A template reaches no internals of Python, no file, and changes nothing."""
    with pytest.raises(PluginError, match="can not be rendered"):
        prompting.check_template(template)


@pytest.mark.parametrize(
    "template",
    ["{{ 1 / 0 }}{{ question }}", "{{ question + 1 }}", "{% for i in range(10**9) %}{% endfor %}{{ question }}"],
)
def test_a_template_that_fails_is_refused(template: str) -> None:
    """A template that fails with an error of Python's own is refused like any other."""
    with pytest.raises(PluginError, match="can not be rendered"):
        prompting.check_template(template)


def test_an_error_repeats_no_patients_words() -> None:
    """A template that fails on a question does not repeat the question."""
    with pytest.raises(PluginError) as caught:
        prompting.build("My chest hurts", "{{ question.nothing.more }}", TOKENIZER, None)
    assert "chest" not in str(caught.value)


TURNS = (Turn("One?", "First."), Turn("Two?", "Second."), Turn("Three?", "Third."))


def test_turns_stand_as_they_were_said() -> None:
    """Earlier turns come before the question, in order, without the template and without the space around them."""
    padded = [Turn(f" {turn.question}\n", f"\n{turn.answer} ") for turn in TURNS]
    wanted = "<One?>First.<Two?>Second.<Three?>Third.<Q: Why?>"
    for turns in (TURNS, padded):
        assert text(prompting.build("Why?", "Q: {{ question }}", TOKENIZER, None, turns)) == wanted
    assert text(prompting.build("Why?", "Q: {{ question }}", TOKENIZER, None, [Turn("One?")])) == "<One?><Q: Why?>"


@given(
    words=st.lists(
        st.lists(st.sampled_from(["<", ">", " word ", "{{ 1/0 }}", "\ue000", "\ue001", "\ue002", "\ue003"])).map(
            "".join
        ),
        min_size=2,
        max_size=6,
    )
)
def test_no_special_token_comes_out_of_a_turn(words: list[str]) -> None:
    """Whatever stands in earlier questions and answers, only the chat's own special tokens are in the prompt."""
    turns = [Turn(question, answer) for question, answer in zip(words[::2], words[1::2], strict=False)]
    prompt = prompting.build("Why?", "{{ question }}", TOKENIZER, None, turns)
    assert special(prompt) == 2 * (len(turns) + 1)
    said = "".join(f"<{turn.question.strip()}>{turn.answer.strip()}" for turn in turns)
    assert text(prompt) == f"{said}<Why?>"


LATEST = ("<Why?>", "<Three?>Third.<Why?>", "<Two?>Second.<Three?>Third.<Why?>")
WHOLE = f"<One?>First.{LATEST[2]}"


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        (1000, WHOLE),
        (len(WHOLE), WHOLE),
        (len(WHOLE) - 1, LATEST[2]),
        (len(LATEST[2]), LATEST[2]),
        (len(LATEST[2]) - 1, LATEST[1]),
        (len(LATEST[1]) - 1, LATEST[0]),
        (1, LATEST[0]),
    ],
)
def test_the_latest_turns_that_fit(room: int, wanted: str, version: Callable[[str], AdapterVersion]) -> None:
    """As many of the latest turns are kept as fit; the question is kept whole, though it may not fit."""
    adapter = version("a")
    prompt = prompting.build_within(room, "Why?", "{{ question }}", TOKENIZER, adapter, TURNS)
    assert (text(prompt), prompt.adapter) == (wanted, adapter)


def test_fit_leaves_what_fits() -> None:
    """Sampling that fits beside the prompt is left as it is, up to the last token."""
    sampling = Sampling(max_tokens=6)
    assert prompting.fit(Prompt((1, 2, 3, 4)), sampling, 10, field="$.question") is sampling


def test_fit_shortens() -> None:
    """An answer that does not fit is shortened to what the context leaves, and nothing else is changed."""
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, repetition_penalty=1.2, seed=3, stop=("x",))
    fitted = prompting.fit(Prompt((1, 2, 3, 4)), sampling, 10, field="$.question")
    assert fitted == Sampling(max_tokens=6, temperature=0.5, top_p=0.9, repetition_penalty=1.2, seed=3, stop=("x",))


@pytest.mark.parametrize("length", [10, 11, 1000])
def test_fit_refuses_a_prompt_that_leaves_no_room(length: int) -> None:
    """A prompt that leaves no token for the answer is refused with its length, the limit and the field."""
    with pytest.raises(PromptTooLong) as caught:
        prompting.fit(Prompt((1,) * length), Sampling(), 10, field="$.prompt")
    assert f"has {length} tokens" in caught.value.message
    assert "may have 10" in caught.value.message
    assert caught.value.field == "$.prompt"
