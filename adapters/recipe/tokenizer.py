"""The byte-level BPE tokenizer and its Mistral-style chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapters.recipe.medquad import Row
from adapters.recipe.settings import (
    BOS,
    END_INST,
    EOS,
    INST,
    PAD,
    SPECIAL_TOKENS,
    SPECIALTIES,
    SPECIALTY_PROMPT,
    UNK,
    ModelShape,
)

#: A system message goes before the user's text of the first turn. ``add_generation_prompt`` adds
#: nothing, as in other Mistral templates. An answer begins with a blank, which byte-level BPE keeps
#: with the first word, so that tokens(prompt) + tokens(" " + answer) == tokens(whole).
CHAT_TEMPLATE = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] | trim + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Roles must alternate: user, assistant, user, ...') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '[INST] ' + (system if loop.first else '') + message['content'] | trim + '[/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'] | trim + eos_token -}}
{%- else -%}
{{- raise_exception('Only system, user and assistant messages are supported') -}}
{%- endif -%}
{%- endfor -%}
"""


def train_tokenizer(rows: Iterable[Row], shape: ModelShape) -> PreTrainedTokenizerFast:
    """Train the tokenizer on questions and answers; ``shape.vocab`` entries, all 256 bytes in it.

    No normaliser and no template processing: any Unicode text comes back unchanged, and only the
    chat template writes ``<s>``.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab,
        min_frequency=2,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [SPECIALTY_PROMPT.format(title=title.lower(), question="") for title in SPECIALTIES.values()]
    texts = [f" {text}" for row in rows for text in (row.question, row.answer)]
    backend.train_from_iterator(texts + 50 * prompts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[INST, END_INST],
        chat_template=CHAT_TEMPLATE,
        model_max_length=shape.positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer; the config names the class that every version of transformers knows."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    config.pop("is_local", None)
    config.pop("name_or_path", None)
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def load_tokenizer(folder: Path) -> Any:
    """Load the saved tokenizer, as any user would."""
    return AutoTokenizer.from_pretrained(str(folder))


def check_tokenizer(tokenizer: Any) -> None:
    """Raise if round trips, special ids or the seam between prompt and answer are wrong."""
    for text in ("Blood pressure", " 5 µg/dL — naïve 心臓 👩‍⚕️\n\ttab ", "a  b", "\u0000\ufffd"):
        ids = tokenizer.encode(text, add_special_tokens=True)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            raise ValueError(f"the tokenizer does not return {text!r}")
    for token in SPECIAL_TOKENS:
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
            raise ValueError(f"{token} is not one token")
    turn = [{"role": "user", "content": "What is gout?"}]
    both = [*turn, {"role": "assistant", "content": "A kind of arthritis."}]
    head = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(both, tokenize=False)
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in (head, " A kind of arthritis." + EOS)]
    if pieces[0] + pieces[1] != tokenizer.encode(whole, add_special_tokens=True):
        raise ValueError("prompt and answer do not join")
