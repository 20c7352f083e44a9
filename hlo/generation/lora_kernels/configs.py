"""How the kernels are cut for a GPU, a layer and a batch: tuned where `hlo bench tune-lora` was run, else by rule.

Tuned configurations are JSON files named after the GPU. HLO brings some; those in `HLO_CACHE_DIR` come before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct

from hlo.generation.lora_kernels.tiles import SMALL

SHIPPED = Path(__file__).with_name("tuned")
"""The folder with the configurations that HLO brings."""

FORMAT = 2  # of the kernels as much as of the file: raised when old figures mean nothing for new kernels


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """How the two kernels are cut.

    `shrink` divides the inputs into `split` parts and reads `block_k` of them at a time; `expand` gives each program
    `run` blocks of `block_n` outputs, and fetches one while it computes the one before. Warps and stages are Triton's.
    With `fork`, `shrink` runs beside the layer's own product.
    """

    split: int
    block_k: int
    shrink_warps: int
    shrink_stages: int
    block_n: int
    expand_warps: int
    fork: bool = False
    run: int = 1


class Layer(Struct, frozen=True):
    """A linear layer as the kernels see it: its inputs, the outputs of each of its slices, and the adapters' rank."""

    inputs: int
    outputs: tuple[int, ...]
    rank: int


class Tuned(Struct, frozen=True, forbid_unknown_fields=True):
    """What was fastest for a layer and a batch of so many `tokens`."""

    layer: Layer
    tokens: int
    config: Config


class Configs(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of tuned configurations."""

    format: int
    gpu: str
    tuned: tuple[Tuned, ...]


def by_rule(layer: Layer, tokens: int) -> Config:
    """What is near the best on an H200, for layers and GPUs that nobody tuned for."""
    if tokens <= 8:
        made = Config(16, 256, 4, 2, 128, 8, fork=True)
    elif tokens <= SMALL:
        made = Config(4, 128, 2, 4, 256, 4)
    else:
        made = Config(2, 64, 4, 3, 128, 8)
    while made.split > 1 and made.split * made.block_k > layer.inputs:
        made = msgspec.structs.replace(made, split=made.split // 2)
    return made


class Chooser:
    """Chooses configurations from the tuned ones of one GPU."""

    def __init__(self, tuned: Iterable[Tuned] = ()) -> None:
        self._tuned: dict[Layer, list[Tuned]] = {}
        for one in sorted(tuned, key=lambda one: one.tokens):
            self._tuned.setdefault(one.layer, []).append(one)
        self.choose = lru_cache(maxsize=None)(self._choose)

    @property
    def layers(self) -> frozenset[Layer]:
        """The layers that are tuned for."""
        return frozenset(self._tuned)

    def _choose(self, layer: Layer, tokens: int) -> Config:
        """What was tuned for the next larger batch with tiles of the same size, else for the largest, else by rule."""
        alike = [one for one in self._tuned.get(layer, ()) if (one.tokens > SMALL) == (tokens > SMALL)]
        near = next((one for one in alike if one.tokens >= tokens), alike[-1] if alike else None)
        return near.config if near else by_rule(layer, tokens)


def load(gpu: str, folders: Iterable[Path]) -> tuple[Chooser, Path | None]:
    """The tuned configurations of a GPU, from the first of the folders that has its file, and that file.

    A file of another format is passed over. Raises ValueError for one that can not be read.
    """
    for folder in folders:
        path = folder / filename(gpu)
        if not path.is_file():
            continue
        if json.loads(path.read_bytes()).get("format") != FORMAT:
            continue
        return Chooser(msgspec.json.decode(path.read_bytes(), type=Configs).tuned), path
    return Chooser(), None


def filename(gpu: str) -> str:
    """The name of a GPU's file."""
    return f"{gpu.replace(' ', '_')}.json"
