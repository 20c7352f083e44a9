"""How the next token is chosen."""

from __future__ import annotations

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from hlo.records import Sampling


class Sampler:
    """Chooses one request's tokens: Transformers' own changes to the logits, in vLLM's order, then chance, if any."""

    def __init__(self, sampling: Sampling) -> None:
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        if sampling.temperature > 0:
            # Dividing by less than 0.01 can overflow; vLLM takes the same.
            self._processors.append(TemperatureLogitsWarper(max(float(sampling.temperature), 0.01)))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generator = _generator(sampling.seed) if sampling.temperature > 0 else None

    def choose(self, ids: list[int], logits: torch.Tensor, best: int) -> int:
        """The token after `ids`, from its logits (vocabulary,); `best` is the likeliest."""
        if not self._processors:
            return best
        logits = self._processors(torch.tensor([ids]), logits.float().cpu()[None])
        if self._generator is None:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=self._generator))


def _generator(seed: int | None) -> torch.Generator:
    """A request's own source of chance. On the CPU, so that a seed means the same anywhere."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
