"""Finds the fastest configurations of the kernels on this machine's GPU, for given layers, ranks and batch sizes.

Each is timed under a CUDA graph over so many copies of the weights that none is found in the cache of the GPU.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace

from hlo.generation.lora_kernels import ops
from hlo.generation.lora_kernels.batch import Batch
from hlo.generation.lora_kernels.configs import FORMAT, Config, Configs, Layer, Tuned
from hlo.generation.lora_kernels.tiles import SMALL

TOKENS = (1, 8, 32, 64, 128, 256, 512, 2048, 8192)
"""Batch sizes that are tuned for."""

_BYTES = 512 << 20  # of weights that are gone through: several times the cache of an H200
_COMPILERS = max(min(os.cpu_count() or 1, 24) - 2, 1)  # processes

Report = Callable[[str], None]


class Bench:
    """One linear layer with adapters in `slots` slots, as many times as it takes to outgrow the cache."""

    def __init__(self, layer: Layer, slots: int, dtype: torch.dtype, copies: int | None = None) -> None:
        self.layer = layer
        self.slots = slots
        size = slots * layer.rank * (layer.inputs * len(layer.outputs) + sum(layer.outputs)) * 2
        self.copies = copies or min(max(_BYTES // size, 2), 32)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", dtype=dtype) * 0.02

        self.x = drawn(max(TOKENS), layer.inputs)
        self.y = drawn(max(TOKENS), sum(layer.outputs))
        self.base = [drawn(sum(layer.outputs), layer.inputs) for _ in range(self.copies)]
        self.a = [[drawn(slots, 1, layer.rank, layer.inputs) for _ in layer.outputs] for _ in range(self.copies)]
        self.b = [[drawn(slots, 1, out, layer.rank) for out in layer.outputs] for _ in range(self.copies)]

    def batch(self, tokens: int, used: int | None = None) -> Batch:
        """A batch whose tokens are spread over the first `used` slots (default: all), as evenly as can be."""
        made = Batch(tokens, self.slots, "cuda")
        made.update(np.sort(np.arange(tokens) % min(used or self.slots, self.slots)))
        return made

    def shrink(self, tokens: int, batch: Batch, config: Config) -> float:
        """Microseconds of `shrink`."""
        h = ops.partial_sums(tokens, self.a[0], config)
        return self._each(lambda i: ops.shrink(self.x[:tokens], h, self.a[i], batch, config, overlap=False))

    def expand(self, tokens: int, batch: Batch, config: Config) -> float:
        """Microseconds of `expand`."""
        h = ops.partial_sums(tokens, self.a[0], config).zero_()
        return self._each(lambda i: ops.expand(self.y[:tokens], h, self.b[i], batch, config, overlap=False))

    def whole(self, tokens: int, batch: Batch | None, config: Config | None) -> float:
        """Microseconds of the layer's product, and of LoRA after or beside it, unless there is no `batch`."""
        x, side = self.x[:tokens], torch.cuda.Stream()

        def one(i: int) -> None:
            def product() -> torch.Tensor:
                return torch.nn.functional.linear(x, self.base[i])

            if batch is None or config is None:
                product()
            else:
                ops.add_lora(product, x, self.a[i], self.b[i], batch, config, side)

        return self._each(one)

    def _each(self, work: Callable[[int], None], repeats: int = 7) -> float:
        """Microseconds of `work` for one copy."""
        with torch.cuda.stream(torch.cuda.Stream()):
            work(0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for copy in range(self.copies):
                work(copy)
        graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        for number, mark in enumerate(marks):
            mark.record()
            if number < repeats:
                graph.replay()
        torch.cuda.synchronize()
        times = [float(a.elapsed_time(b)) for a, b in itertools.pairwise(marks)]
        return statistics.median(times) * 1000 / self.copies


class Found(Struct, frozen=True):
    """The best configuration for a batch, and times.

    In microseconds: each kernel alone, the layer's product alone, all in the best way, and all one after the other.
    """

    tuned: Tuned
    shrink_us: float
    expand_us: float
    product_us: float
    whole_us: float
    pair_us: float


def candidates(layer: Layer, tokens: int) -> dict[str, list[Config]]:
    """What is tried: ways to cut `shrink`, and ways to cut `expand` for each number of parts."""
    small = tokens <= SMALL
    parts = (2, 4, 8, 16) if small else (1, 2)
    runs = (1, 2, 4) if small else (1, 2)
    widths = (128, 256, 512) if small else (64, 128, 256)
    steps = (128, 256) if small else (64, 128)
    stages = ((2, 4), (2, 2), (4, 2)) if small else ((4, 3), (4, 4), (8, 3))
    splits = [one for one in parts if one * steps[0] <= layer.inputs] or [1]
    cuts = [(s, k) for s, k in itertools.product(splits, steps) if s * k <= max(layer.inputs, steps[0])]
    return {
        "shrink": [Config(s, k, w, t, 128, 4) for (s, k), (w, t) in itertools.product(cuts, stages)],
        "expand": [
            Config(s, 128, 4, 2, n, w, run=r)
            for s, (n, r), w in itertools.product(splits, itertools.product(widths, runs), (4, 8))
            if r == 1 or n * r <= max(layer.outputs)
        ],
    }


def tune(layers: Sequence[Layer], slots: int, dtype: torch.dtype, tokens: Sequence[int] = TOKENS) -> Iterator[Found]:
    """Tune for layers and batch sizes, one after the other; compiles first, in several processes."""
    jobs = [
        (layer, size, config, kernel)
        for layer in layers
        for size in {min(tokens), max(tokens)}
        for kernel, some in candidates(layer, size).items()
        for config in some
    ]
    pieces = [jobs[start :: 2 * _COMPILERS] for start in range(2 * _COMPILERS)]
    with ProcessPoolExecutor(_COMPILERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, pieces, itertools.repeat(str(dtype).removeprefix("torch."))))
    for layer in layers:
        bench = Bench(layer, slots, dtype)
        for size in tokens:
            yield _best(bench, size)
        del bench
        torch.cuda.empty_cache()


def _best(bench: Bench, tokens: int) -> Found:
    batch = bench.batch(tokens)
    some = candidates(bench.layer, tokens)
    first = {one: bench.shrink(tokens, batch, one) for one in some["shrink"]}
    second = {one: bench.expand(tokens, batch, one) for one in some["expand"]}
    pairs = sorted(
        ((one, two) for one in first for two in second if one.split == two.split),
        key=lambda pair: first[pair[0]] + second[pair[1]],
    )
    made = [replace(one, block_n=two.block_n, expand_warps=two.expand_warps, run=two.run) for one, two in pairs[:2]]
    made += [replace(one, fork=True) for one in made if tokens <= SMALL]
    whole = {one: bench.whole(tokens, batch, one) for one in made}
    config = min(whole, key=whole.__getitem__)
    return Found(
        Tuned(bench.layer, tokens, config),
        first[pairs[0][0]],
        second[pairs[0][1]],
        bench.whole(tokens, None, None),
        whole[config],
        min((took for one, took in whole.items() if not one.fork)),
    )


def configs(gpu: str, found: Iterable[Found]) -> Configs:
    """What a file of tuned configurations holds."""
    return Configs(FORMAT, gpu, tuple(one.tuned for one in found))


def _compile(jobs: Sequence[tuple[Layer, int, Config, str]], dtype: str) -> None:
    """Fill Triton's cache, in a process of its own."""
    benches: dict[Layer, Any] = {}
    for layer, tokens, config, kernel in jobs:
        bench = benches.setdefault(layer, Bench(layer, 1, getattr(torch, dtype), copies=1))
        getattr(bench, kernel)(tokens, bench.batch(tokens), config)
