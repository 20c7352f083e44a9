"""What is right: the embedded model and its adapters under transformers and PEFT, in float32.

`Reference` is transformers and PEFT by themselves; `engine` is the engine that is made of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hlo.contracts import EngineOptions
from hlo.generation import adapters, base_model
from hlo.generation.adapters import Located
from hlo.generation.base_model import EMBEDDED_NAME, embedded_root
from hlo.generation.prompting import raw
from hlo.generation.tokenizer import ChatTokenizer
from hlo.generation.transformers_engine import TransformersEngine
from hlo.records import AdapterVersion, Sampling

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


class Said(Struct, frozen=True):
    """What an engine said to a prompt, in how many tokens, and why it ended there."""

    text: str
    tokens: int
    finish_reason: str


class EngineReference:
    """The engine `transformers` with adapters loaded under their names."""

    def __init__(self, engine: TransformersEngine, versions: dict[str, AdapterVersion]) -> None:
        self._engine = engine
        self._versions = versions
        self._tokenizer = ChatTokenizer.load(MODEL)

    async def say(self, prompt: str, adapter: str, tokens: int, stop: tuple[str, ...] = ()) -> Said:
        """Continue a raw prompt greedily; `adapter` may be `base`."""
        text, count, reason = "", 0, "none"
        sampling = Sampling(max_tokens=tokens, stop=stop)
        async with aclosing(
            self._engine.generate(raw(prompt, self._tokenizer, self._versions.get(adapter)), sampling)
        ) as deltas:
            async for delta in deltas:
                text, count, reason = text + delta.text, count + len(delta.token_ids), delta.finish_reason or "none"
        return Said(text, count, reason)


@asynccontextmanager
async def engine(names: Sequence[str], store: Path) -> AsyncIterator[EngineReference]:
    """Start the engine `transformers` as a server without settings would, with adapters checked and loaded."""
    model = base_model.find("")
    versions = {
        name: adapters.check(Located.at(ADAPTERS / name), name, model.linears, model.name, store) for name in names
    }
    started = await TransformersEngine.start(
        EngineOptions(
            model=model.folder,
            name=model.name,
            device="cpu",
            dtype="float32",
            quantization="none",
            slots=len(versions),
            rank=max(version.rank for version in versions.values()),
            kinds=tuple(sorted({kind for version in versions.values() for kind in version.modules})),
            max_num_seqs=64,
        )
    )
    try:
        for version in versions.values():
            await started.load(version)
        yield EngineReference(started, versions)
    finally:
        await started.close()


def files(name: str) -> tuple[Path, Path]:
    """The two files of an embedded adapter."""
    return ADAPTERS / name / "adapter_config.json", ADAPTERS / name / "adapter_model.safetensors"
