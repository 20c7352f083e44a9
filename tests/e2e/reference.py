"""What is right: the embedded model and its adapters under transformers and PEFT, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hlo.generation.base_model import EMBEDDED_NAME, embedded_root

MODEL = embedded_root() / "models" / EMBEDDED_NAME
ADAPTERS = embedded_root() / "adapters"
BASE = "base"


class Reference:
    """The base model with every adapter, one active at a time."""

    def __init__(self, names: list[str]) -> None:
        torch.set_num_threads(1)  # on cores that a server uses too, more only wait for each other
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        self._model: Any = None
        for name in names:
            folder = str(ADAPTERS / name)
            if self._model is None:
                self._model = PeftModel.from_pretrained(base, folder, adapter_name=name)
            else:
                self._model.load_adapter(folder, adapter_name=name)
        self._model.eval()

    def greedy(self, prompt: str, adapter: str, tokens: int) -> str:
        """The continuation of a raw prompt; `adapter` may be `base`."""
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        with torch.inference_mode():
            if adapter == BASE:
                with self._model.disable_adapter():
                    out = self._generate(ids, tokens)
            else:
                self._model.set_adapter(adapter)
                out = self._generate(ids, tokens)
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    def loss(self, question: str, answer: str, adapter: str) -> float:
        """Mean negative log-likelihood, in nats a token, of an answer given its question."""
        start = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        before = self.tokenizer(start)["input_ids"]
        ids = torch.tensor([before + self.tokenizer(f" {answer}")["input_ids"]])
        labels = ids.clone()
        labels[:, : len(before)] = -100
        with torch.inference_mode():
            if adapter == BASE:
                with self._model.disable_adapter():
                    return float(self._model(input_ids=ids, labels=labels).loss)
            self._model.set_adapter(adapter)
            return float(self._model(input_ids=ids, labels=labels).loss)

    def _generate(self, ids: torch.Tensor, tokens: int) -> torch.Tensor:
        out: torch.Tensor = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        return out


def files(name: str) -> tuple[Path, Path]:
    """The two files of an embedded adapter."""
    return ADAPTERS / name / "adapter_config.json", ADAPTERS / name / "adapter_model.safetensors"
