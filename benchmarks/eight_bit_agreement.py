"""The second part of benchmarks/eight_bit.py: do 8-bit weights say what 16-bit ones say, and each other?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.eight_bit_engine import Answers
from hlo.generation.base_model import EMBEDDED_NAME, embedded_root

_QUESTIONS = Path(__file__).parent / "data" / "own_words_dev.jsonl"


def make_checkpoint(folder: Path) -> Path | None:
    """The demonstration model in int8, saved by bitsandbytes; None where that is not installed."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    demo = embedded_root() / "models" / EMBEDDED_NAME
    eight = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(demo, quantization_config=eight, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo).save_pretrained(folder)
    return folder


def prompts_of(count: int) -> list[list[int]]:
    """Questions in patients' own words, as the demonstration model's token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_root() / "models" / EMBEDDED_NAME)
    questions = [json.loads(line)["question"] for line in _QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [
        list(tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=True, return_dict=False))
        for one in questions[:: max(1, len(questions) // count)][:count]
    ]


def compare(told: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """A row for each pair that matters: everyone with bf16, and every other one with bitsandbytes' own path."""
    pairs = [(name, "bf16") for name in told if name != "bf16"]
    pairs += [(name, "bitsandbytes") for name in told if name not in ("bf16", "bitsandbytes")]
    rows = [_row(name, other, told) for name, other in pairs if other in told]
    return rows or [{"weights": name, "perplexity": _perplexity(told[name])} for name in told]


def _row(name: str, other: str, told: Mapping[str, Answers]) -> dict[str, Any]:
    a, b = told[name], told[other]
    pairs = [(x, y) for p, q in zip(a.tokens, b.tokens, strict=True) for x, y in zip(p, q, strict=True)]
    errors = [
        one[token] - two[token]
        for p, q in zip(a.best, b.best, strict=True)
        for one, two in zip(p, q, strict=True)
        for token in one.keys() & two.keys()
    ]
    first = [x[0] == y[0] for x, y in zip(a.tokens, b.tokens, strict=True)]
    likeliest = [
        max(one, key=one.__getitem__) == max(two, key=two.__getitem__)
        for p, q in zip(a.best, b.best, strict=True)
        for one, two in zip(p, q, strict=True)
    ]
    return {
        "weights": name,
        "against": other,
        "same best token": sum(likeliest) / len(likeliest),
        "first same": sum(first) / len(first),
        "greedy same": sum(x == y for x, y in pairs) / len(pairs),
        "log-p error rms": math.sqrt(sum(one * one for one in errors) / len(errors)),
        "at most": max(abs(one) for one in errors),
        "perplexity": _perplexity(a),
        "other's": _perplexity(b),
    }


def _perplexity(answers: Answers) -> float:
    values = [one for prompt in answers.own for one in prompt]
    return math.exp(-sum(values) / len(values))
