"""Reads a model's folder. What Transformers can not read is told as `ModelError`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from hlo.contracts import EngineOptions
from hlo.errors import EngineError, ModelError, SettingsError


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The model's tokenizer. Raises `ModelError`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise ModelError(
            f"No tokenizer can be read in `{folder}`: {error}",
            remedy="The folder needs tokenizer.json and tokenizer_config.json.",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer in `{folder}` is not a fast one.", remedy="HLO needs `tokenizer.json`; convert it once."
        )
    return tokenizer


def read_model(options: EngineOptions) -> PreTrainedModel:
    """The base model, on its device. Raises `ModelError`, or `EngineError` when it does not fit there."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(options.model), dtype=dtype, local_files_only=True, output_loading_info=True
        )
        model = model.to(options.device).eval()
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"`{options.model}` does not fit the memory of `{options.device}`.",
            remedy="Set HLO_DTYPE=bfloat16 or HLO_DEVICE=cpu, or choose a smaller model.",
        ) from error
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise ModelError(
            f"Transformers can not load `{options.model}`: {error}", remedy="`hlo doctor` helps."
        ) from error
    if missing := sorted(report["missing_keys"]):  # Transformers would go on with random numbers there
        raise ModelError(
            f"`{options.model}` lacks {len(missing)} of the model's weights, such as `{missing[0]}`.",
            remedy="Fetch the model again.",
        )
    return model


def eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json, as vLLM takes them."""
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset(number for number in (*listed, tokenizer.eos_token_id) if number is not None)


def context(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, options: EngineOptions) -> int:
    """The longest prompt plus answer, in tokens. Raises `SettingsError` when the operator wants more than there is."""
    # Some configurations have no limit; vLLM takes 2048 there too.
    configured = getattr(config.get_text_config(), "max_position_embeddings", None) or 2048
    possible = int(min(configured, tokenizer.model_max_length))
    if options.max_model_len is not None and options.max_model_len > possible:
        raise SettingsError(
            f"HLO_MAX_MODEL_LEN={options.max_model_len}, but `{options.name}` takes {possible} tokens at most.",
            remedy=f"Set it to {possible} or less, or leave it out.",
        )
    return options.max_model_len or possible
