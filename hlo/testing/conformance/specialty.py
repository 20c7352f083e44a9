"""What a specialty declares: its fields, and the template by which the model is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hlo import catalog
from hlo.errors import HLOError
from hlo.generation import prompting
from hlo.records import Specialty
from hlo.testing import CharacterTokenizer
from hlo.testing.catchment import all_examples
from hlo.testing.conformance.bench import Bench, Told, ok, problem, trouble, warning
from hlo.testing.conformance.probes import HOSTILE, INNOCENT


def declaration(bench: Bench) -> Iterator[Told]:
    """The fields of each specialty, and whether its name is free."""
    seen: set[str] = set()
    for specialty in bench.offered:
        name = specialty.name
        if error := problem(catalog.check_declaration, specialty):
            yield trouble(error.message, error.remedy)
        elif name in seen or name in bench.others:
            holder = "this plugin too" if name in seen else "an installed plugin"
            yield trouble(f"`{name}` is offered by {holder}.", "Rename one of the two.")
        else:
            seen.add(name)
            if specialty.description.strip():
                yield ok(f"`{name}`: {specialty.title}. {specialty.description}")
            else:
                yield warning(f"`{name}` has no description.", "Say what it answers.")
    if not bench.offered and bench.discovery.offers:
        yield ok("It offers no specialty.")


def template(bench: Bench) -> Iterator[Told]:
    """Whether a template renders, keeps the question as it is, and leaves room for an answer."""
    good = []
    for specialty in bench.declared:
        try:
            prompting.check_template(specialty.template)
            faults = list(_words(specialty))
        except HLOError as error:
            yield trouble(f"`{specialty.name}`: {error.message}", error.remedy)
        else:
            good.append(specialty)
            yield from faults
    # Only now what needs the base model: one that can not be had must not hide what was found without it.
    for specialty in good:
        faults = [*_forged(specialty, bench), *_room(specialty, bench)]
        yield from faults
        if not faults:
            yield ok(f"`{specialty.name}`: no words of a question become special tokens")


def _words(specialty: Specialty) -> Iterator[Told]:
    """Whether the template keeps the words of the question."""
    prompt = prompting.build(HOSTILE, specialty.template, CharacterTokenizer(), None)
    text = "".join(chr(abs(number)) for number in prompt.token_ids)
    if "{{ 7*7 }}" not in text and "49" in text:
        yield trouble(
            f"`{specialty.name}`: a `{{{{ 7*7 }}}}` in a question is evaluated.",
            "Put `{{ question }}` into the template, and nothing that evaluates it.",
        )
    elif HOSTILE not in text:
        yield warning(
            f"`{specialty.name}`: the template changes the question's own words.",
            "Drop the filters: the model should see what the patient wrote.",
        )


def _forged(specialty: Specialty, bench: Bench) -> Iterator[Told]:
    """Whether words of the question become tokens that only a template may write."""
    tokenizer = bench.tokenizer
    special = set(tokenizer.encode(HOSTILE, ())) - set(tokenizer.encode(HOSTILE, ((0, len(HOSTILE)),)))
    hostile, innocent = (
        Counter(one for one in prompting.build(text, specialty.template, tokenizer, None).token_ids if one in special)
        for text in (HOSTILE, INNOCENT)
    )
    if forged := hostile - innocent:
        yield trouble(
            f"`{specialty.name}`: a question with control words in it yields {forged.total()} special tokens.",
            "Let the template write the same around every question; do not branch on its words.",
        )


def _room(specialty: Specialty, bench: Bench) -> Iterator[Told]:
    """Whether prompt and answer fit the model's context."""
    longest = max(all_examples(specialty), key=len, default=INNOCENT)
    alone, tokens = (
        len(prompting.build(text, specialty.template, bench.tokenizer, None).token_ids) for text in (INNOCENT, longest)
    )
    answer = specialty.sampling.max_tokens
    if alone >= bench.context:
        yield trouble(
            f"`{specialty.name}`: the template alone has {alone} tokens; prompt and answer may have {bench.context}.",
            "Shorten the template.",
        )
    elif tokens + answer > bench.context:
        yield warning(
            f"`{specialty.name}`: {tokens} tokens of prompt for its longest example and {answer} of answer are more "
            f"than {bench.model.name}'s {bench.context}.",
            "Answers will be cut; lower `sampling.max_tokens`, or shorten the template.",
        )
