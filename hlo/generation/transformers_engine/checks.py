"""What the engine `transformers` needs, and what it refuses before the worker hears of it."""

from __future__ import annotations

import importlib.metadata

from hlo.contracts import EngineOptions
from hlo.errors import InvalidRequest, SettingsError
from hlo.generation import prompting
from hlo.records import Prompt, Sampling


def version() -> str | None:
    """The versions of Transformers and PEFT that are installed, None without PEFT; imports nothing."""
    try:
        return f"{importlib.metadata.version('transformers')} (peft {importlib.metadata.version('peft')})"
    except importlib.metadata.PackageNotFoundError:
        return None


def check_options(options: EngineOptions) -> None:
    """Raise `SettingsError` for options that this engine can not keep."""
    if version() is None:
        raise SettingsError(
            "HLO_ENGINE=transformers needs the package `peft`.", remedy="`pip install 'hlo[transformers]'`."
        )
    if options.quantization != "none":
        raise SettingsError(
            f"The engine `transformers` can not quantise (HLO_QUANTIZATION={options.quantization}).",
            remedy="Set HLO_QUANTIZATION=none and unset QUANTIZE, or use the engine `vllm`.",
        )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if options.dtype not in dtypes:
        raise SettingsError(f"HLO_DTYPE={options.dtype} is no precision.", remedy=f"Choose one of {', '.join(dtypes)}.")


def check_sampling(sampling: Sampling) -> None:
    """Raise `InvalidRequest` for what vLLM refuses (vllm/sampling_params.py)."""
    rules = (
        (sampling.max_tokens >= 1, "max_tokens must be at least 1"),
        (0 <= sampling.temperature <= 2, "temperature must be in [0, 2]"),
        (0 < sampling.top_p <= 1, "top_p must be in (0, 1]"),
        (0 < sampling.repetition_penalty < float("inf"), "repetition_penalty must be above 0"),
        (sampling.seed is None or -(2**63) <= sampling.seed < 2**63, "seed must fit 64 bits"),
        (all(sampling.stop), "stop must hold no empty string"),
    )
    for kept, rule in rules:
        if not kept:
            raise InvalidRequest(f"{rule}.", field="$", remedy="Mend that parameter.")


def fit(prompt: Prompt, sampling: Sampling, max_model_len: int) -> Sampling:
    """Shorten `max_tokens` to what the context leaves. Raises `InvalidRequest` for a prompt that is empty or too long.

    Tokens of another vocabulary are refused by the model, which knows its own.
    """
    if not prompt.token_ids:
        raise InvalidRequest("The prompt is empty.", field="$", remedy="Send at least one token.")
    return prompting.fit(prompt, sampling, max_model_len, field="$")
