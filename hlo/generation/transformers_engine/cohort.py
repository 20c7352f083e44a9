"""One batch: requests that began together, each a row with its own adapter, and their KV cache."""

from __future__ import annotations

import time

import torch
from transformers import DynamicCache

from hlo.errors import EngineError, HLOError
from hlo.generation.transformers_engine.commands import Request
from hlo.generation.transformers_engine.model import Model
from hlo.generation.transformers_engine.sampling import Sampler
from hlo.generation.transformers_engine.text import Text
from hlo.records import Delta, FinishReason


class Row:
    """A request in the worker's hands. `adapter` is PEFT's name; `ids` are prompt and answer so far.

    Raises `InvalidRequest` or `AdapterError` for a prompt that the model can not take.
    """

    def __init__(self, request: Request, model: Model) -> None:
        model.check_tokens(request.prompt)
        self.adapter = model.adapters.peft_name(request.prompt.adapter)
        self.ids = list(request.prompt.token_ids)
        self._request = request
        self._ended = False
        self._last = len(self.ids) + request.sampling.max_tokens
        self._eos = model.eos
        self._text = Text(model.tokenizer, request.prompt.token_ids, request.sampling.stop)
        self._sampler = Sampler(request.sampling)
        self._queue_s: float | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended, or nobody waits for it any more."""
        return self._ended or self._request.given_up

    def begin(self) -> None:
        """Its wait is over."""
        self._queue_s = time.monotonic() - self._request.asked

    def take_next(self, logits: torch.Tensor, best: int) -> None:
        """Choose a token from logits (vocabulary,), and send what it says; `best` is the likeliest.

        The last token counts, also when it is never shown.
        """
        token = self._sampler.choose(self.ids, logits, best)
        self.ids.append(token)
        ends = token in self._eos
        text = "" if ends else self._text.add(token)
        reason: FinishReason | None = None
        if ends or self._text.stopped:
            reason = "stop"
        elif len(self.ids) >= self._last:
            reason = "length"
        if reason is not None:
            self._ended = True
            text += self._text.rest()
        self._request.send(Delta(text, (token,), reason, queue_s=self._queue_s))

    def fail(self, error: HLOError) -> None:
        """End with an error."""
        self._ended = True
        self._request.fail(error)

    def abort(self) -> None:
        """End here, with what was held back."""
        self._ended = True
        self._request.send(Delta(self._text.rest(), (), "abort"))


class Cohort:
    """Rows that are one batch, padded on the left, from their first step to their last."""

    def __init__(self, rows: list[Row], model: Model) -> None:
        self.rows = rows
        for row in rows:
            row.begin()
        self._model = model
        self._cache = DynamicCache(config=model.config)
        longest = max(len(row.ids) for row in rows)
        gaps = [longest - len(row.ids) for row in rows]
        padded = [[0] * gap + row.ids for gap, row in zip(gaps, rows, strict=True)]
        self._ids = torch.tensor(padded, device=model.device)
        self._mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=model.device)

    def step(self) -> None:
        """Make one token for every row. Rows that are over leave, before and after."""
        self._drop()
        if not self.rows:
            return
        logits = self._model.forward([row.adapter for row in self.rows], self._ids, self._mask, self._cache)[:, -1]
        # Asked of the whole batch at once: a GPU would be waited for at every row.
        bests, wrong = logits.argmax(-1).tolist(), logits.isnan().any(-1).tolist()
        for number, row in enumerate(self.rows):
            if wrong[number]:
                row.fail(_no_numbers())
            else:
                row.take_next(logits[number], bests[number])
        self._ids = torch.tensor([row.ids[-1:] for row in self.rows], device=self._model.device)
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self._drop()

    def _drop(self) -> None:
        """Let rows that are over leave, with their part of the KV cache."""
        stay = [number for number, row in enumerate(self.rows) if not row.over]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in stay]
        if self.rows:
            indices = torch.tensor(stay, device=self._model.device)
            self._cache.batch_select_indices(indices)
            self._ids, self._mask = self._ids[indices], self._mask[indices]


def _no_numbers() -> EngineError:
    return EngineError(
        "The model computed values that are no numbers for this request.",
        remedy="Set HLO_DTYPE=float32 if it is float16; check the adapter.",
    )
