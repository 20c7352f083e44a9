"""Do base and adapters, mixed in one batch, say under HLO's vLLM engine what PEFT says?

`python -m benchmarks.parity` computes on the GPU in bfloat16 with HLO's LoRA kernels where there is one, else on the
CPU in float32. Every answer that PEFT gives in float32 is scored token by token: in all batches at once by the engine,
and one after the other by PEFT in the engine's precision, whose own rounding is the yardstick. The demonstration model
and its adapters are used.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from peft import PeftModel
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.report import tell
from hlo.contracts import EngineOptions
from hlo.generation import adapters, base_model
from hlo.generation.adapters import Located
from hlo.generation.base_model import EMBEDDED_NAME, embedded_root
from hlo.generation.lora_kernels.configs import SHIPPED
from hlo.generation.vllm_engine import VllmEngine, needs_null
from hlo.records import AdapterVersion, Prompt, Sampling

MODEL = embedded_root() / "models" / EMBEDDED_NAME
ADAPTERS = embedded_root() / "adapters"
BASE = "base"
QUESTIONS = (
    "What are the symptoms of heart failure?",
    "What are the treatments for breast cancer?",
    "What causes migraine?",
    "How is cystic fibrosis inherited?",
)
TOKENS = 48


class Answer(Struct, frozen=True):
    """A prompt, an adapter's name (or `base`), and the token ids with which PEFT goes on."""

    adapter: str
    prompt: tuple[int, ...]
    said: tuple[int, ...]


class Peft:
    """The base model with every adapter, one active at a time."""

    def __init__(self, names: Sequence[str], dtype: torch.dtype, device: str) -> None:
        self._device = device
        model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
        for name in names:
            folder = str(ADAPTERS / name)
            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        self._model = model.to(device=device, dtype=dtype).eval()

    def go_on(self, adapter: str, prompt: Sequence[int]) -> tuple[int, ...]:
        """The greedy continuation."""
        ids = torch.tensor([list(prompt)], device=self._device)
        with torch.inference_mode(), self._with(adapter):
            out = self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
            )
        return tuple(out[0, len(prompt) :].tolist())

    def score(self, adapter: str, tokens: Sequence[int]) -> list[float]:
        """Natural-log probabilities of the tokens after the first."""
        ids = torch.tensor([list(tokens)], device=self._device)
        with torch.inference_mode(), self._with(adapter):
            logits = self._model(input_ids=ids).logits[0, :-1].float()
        return [float(one) for one in logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]]

    def _with(self, adapter: str) -> Any:
        if adapter == BASE:
            return self._model.disable_adapter()
        self._model.set_adapter(adapter)
        return torch.no_grad()


async def start(names: Sequence[str], device: str, store: Path) -> tuple[VllmEngine, dict[str, AdapterVersion | None]]:
    """HLO's engine with all adapters loaded, and their versions by name."""
    model = base_model.find("")
    found = {
        name: adapters.check(Located.at(ADAPTERS / name), name, model.linears, model.name, store) for name in names
    }
    kinds = frozenset(kind for version in found.values() for kind in version.modules)
    gpu = device == "cuda"
    null = adapters.null(model.linears, model.name, kinds, store) if needs_null("cuda" if gpu else "cpu") else None
    engine = await VllmEngine.start(
        EngineOptions(
            model=model.folder,
            name=model.name,
            device="cuda" if gpu else "cpu",
            dtype="bfloat16" if gpu else "float32",
            quantization="none",
            slots=len(found),
            rank=max(version.rank for version in found.values()),
            kinds=tuple(sorted(kinds)),
            null=null,
            max_num_seqs=64,
            gpu_memory_utilization=0.2,
            enforce_eager=not gpu,
            lora_kernels="hlo" if gpu else "engine",
            lora_configs=(SHIPPED,),
            shutdown_grace_s=5,
        )
    )
    versions: dict[str, AdapterVersion | None] = {BASE: None, **found}
    for version in found.values():
        await engine.load(version)
    return engine, versions


async def ask(engine: VllmEngine, versions: dict[str, AdapterVersion | None], answers: Sequence[Answer]) -> list[Any]:
    """Each answer's log-probabilities and the engine's own greedy continuation: all at once, then one by one."""

    async def go_on(one: Answer) -> tuple[int, ...]:
        prompt = Prompt(one.prompt, versions[one.adapter])
        said: list[int] = []
        async with aclosing(engine.generate(prompt, Sampling(max_tokens=TOKENS))) as deltas:
            async for delta in deltas:
                said += delta.token_ids
        return tuple(said)

    def score(one: Answer) -> Any:
        return engine.score(Prompt(one.prompt + one.said, versions[one.adapter]))

    return [
        list(await asyncio.gather(*(score(one) for one in answers))),
        list(await asyncio.gather(*(go_on(one) for one in answers))),
        [await go_on(one) for one in answers],
    ]


def run(store: Path) -> None:
    """Compare, and tell."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    names = sorted(path.name for path in ADAPTERS.iterdir() if (path / "adapter_config.json").is_file())
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    exact = Peft(names, torch.float32, device)
    answers = []
    for question, adapter in track(list(itertools.product(QUESTIONS, [BASE, *names])), "PEFT answers"):
        prompt = tuple(tokenizer(f"[INST] {question} [/INST]")["input_ids"])
        answers.append(Answer(adapter, prompt, exact.go_on(adapter, prompt)))

    async def engines() -> list[Any]:
        engine, versions = await start(names, device, store)
        try:
            return await ask(engine, versions, answers)
        finally:
            await engine.close()

    mixed, together, alone = asyncio.run(engines())
    right = [exact.score(one.adapter, one.prompt + one.said) for one in answers]
    rounded = Peft(names, dtype, device)
    yardstick = [rounded.score(one.adapter, one.prompt + one.said) for one in answers]
    others = [exact.score(names[number % len(names)], one.prompt + one.said) for number, one in enumerate(answers)]
    rows = [
        {"log-probabilities against PEFT in float32": what, "answers": len(answers), **differences(found, right)}
        for what, found in (
            (f"HLO, mixed, {str(dtype).removeprefix('torch.')}", mixed),
            (f"PEFT alone, {str(dtype).removeprefix('torch.')}", yardstick),
            ("PEFT in float32 with another adapter", others),
        )
    ]
    tell("parity", "Base and adapters in mixed batches: does the engine say what PEFT says?", rows)
    print(f"mixed as alone, word for word: {same(together, alone)} of {len(answers)}")
    print(f"as PEFT in float32, word for word: {same(together, [one.said for one in answers])} of {len(answers)}")


def differences(found: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean, 99th percentile and largest absolute difference of all tokens, in nats."""
    errors = sorted(abs(a - b) for one, two in zip(found, right, strict=True) for a, b in zip(one, two, strict=True))
    return {"mean": statistics.fmean(errors), "p99": errors[int(len(errors) * 0.99)], "largest": errors[-1]}


def same(some: Sequence[Any], others: Sequence[Any]) -> int:
    """How many are equal."""
    return sum(one == other for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
