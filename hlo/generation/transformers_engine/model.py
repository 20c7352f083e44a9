"""The loaded model. Used by the worker's thread alone."""

from __future__ import annotations

import torch
from transformers import Cache

from hlo.contracts import EngineInfo, EngineOptions
from hlo.errors import EngineError, InvalidRequest
from hlo.generation.transformers_engine import checks, loading
from hlo.generation.transformers_engine.lora import Adapters
from hlo.records import Prompt


class Model:
    """Computes logits and scores, for rows that each have their own adapter. `eos` are the tokens that end an answer.

    Raises `ModelError`, `SettingsError` or `EngineError` when `options` can not be kept.
    """

    def __init__(self, options: EngineOptions) -> None:
        tokenizer = loading.read_tokenizer(options.model)
        base = loading.read_model(options)
        self.tokenizer = tokenizer.backend_tokenizer
        self.config = base.config
        self.device = base.device
        self.eos = loading.eos(base, tokenizer)
        self.adapters = Adapters(base, options)
        self._vocabulary = base.get_input_embeddings().num_embeddings
        self.info = EngineInfo(
            engine="transformers",
            version=str(checks.version()),
            model=options.name,
            device=options.device,
            dtype=str(base.dtype).removeprefix("torch."),
            quantization="none",
            eager=True,
            max_model_len=loading.context(base.config, tokenizer, options),
            max_adapters=options.slots,
            max_lora_rank=options.rank,
            kinds=options.kinds,
            reason=options.reason,
            # Where the operator sets no limit: the KV cache of 32 rows fits a laptop.
            max_num_seqs=options.max_num_seqs or 32,
        )

    def forward(
        self, adapters: list[str], ids: torch.Tensor, mask: torch.Tensor, cache: Cache | None = None
    ) -> torch.Tensor:
        """Logits: of the last position, (rows, 1, vocabulary), with a `cache`; of all positions without.

        `adapters` are PEFT's names; `ids` are (rows, new tokens); `mask` is 0 where a row is padded on the left,
        (rows, tokens so far).
        """
        with torch.inference_mode():
            output = self.adapters.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
                # A few architectures leave these two unread: they find positions by themselves, and give all logits.
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                logits_to_keep=0 if cache is None else 1,
                **self.adapters.choice(adapters),
            )
        return output.logits if cache is None else output.logits[:, -1:]

    def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Log-probabilities of the prompt's tokens after the first."""
        self.check_tokens(prompt)
        ids = torch.tensor([prompt.token_ids], device=self.device)
        try:
            logits = self.forward([self.adapters.peft_name(prompt.adapter)], ids, torch.ones_like(ids))
            scores = logits[0, :-1].float().log_softmax(dim=-1)
        except torch.OutOfMemoryError as error:
            raise out_of_memory() from error
        return tuple(scores.gather(-1, ids[0, 1:, None])[:, 0].tolist())

    def check_tokens(self, prompt: Prompt) -> None:
        """Refuse tokens that would index past the end of the embeddings, which a GPU does not survive."""
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < self._vocabulary:
            raise InvalidRequest(
                f"The prompt holds a token that is none of the model's {self._vocabulary}.",
                field="$",
                remedy="Use the tokenizer of this base model.",
            )


def out_of_memory() -> EngineError:
    """The error of a request for which the device's memory does not suffice."""
    return EngineError(
        "The device's memory is full.", remedy="Ask again; lower HLO_MAX_NUM_SEQS or HLO_MAX_MODEL_LEN if it recurs."
    )
