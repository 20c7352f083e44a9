"""What do the LoRA kernels cost beside the matrix products that they add to? One decoder's layers under a CUDA graph.

Needs a GPU. Rows: ways to run them; microseconds a layer above the products alone.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from hlo.generation.lora_kernels.ops import Batch, Config, expand, shrink
from hlo.generation.lora_kernels.tiles import BLOCKS, most_tiles, plan

HIDDEN, INNER = 4096, 14336
LINEARS = {
    "qkv": (HIDDEN, (4096, 1024, 1024)),
    "o": (HIDDEN, (4096,)),
    "gate_up": (HIDDEN, (INNER, INNER)),
    "down": (INNER, (HIDDEN,)),
}


def batch(tokens: int, slots: int, used: int) -> Batch:
    """Tokens spread evenly over the `used` first slots, neighbours together when there are many."""
    chosen = (
        np.arange(tokens, dtype=np.int32) % used
        if tokens <= 512
        else np.arange(tokens, dtype=np.int32) * used // tokens
    )
    planned = plan(chosen.astype(np.int32))
    tables = []
    for table, block in zip(planned.tables, BLOCKS, strict=True):
        whole = np.zeros((most_tiles(tokens, slots, block), 4), dtype=np.int32)
        whole[: len(table)] = table
        tables.append(torch.from_numpy(whole).cuda())
    return Batch(torch.from_numpy(planned.order).cuda(), tuple(tables))


class Layers:
    """Weights of some linear layers, `layers` times, each with its own memory."""

    def __init__(self, names: Iterable[str], layers: int, slots: int, rank: int) -> None:
        self.names, self.layers = tuple(names), layers
        new = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02
        self.base = [{n: new(sum(LINEARS[n][1]), LINEARS[n][0]) for n in self.names} for _ in range(layers)]
        self.a = [
            {n: [new(slots, 1, rank, LINEARS[n][0]) for _ in LINEARS[n][1]] for n in self.names} for _ in range(layers)
        ]
        self.b = [{n: [new(slots, 1, w, rank) for w in LINEARS[n][1]] for n in self.names} for _ in range(layers)]


def timed(work: Callable[[], None], repeats: int = 10) -> float:
    """Microseconds of `work` under a CUDA graph: the median of `repeats`."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return float(np.median([a.elapsed_time(b) * 1000 for a, b in itertools.pairwise(marks)]))


AUX: Any = None


def forward(
    layers: Layers, inputs: dict[int, torch.Tensor], some: Batch, way: str, config: Callable[[str], Config]
) -> None:
    """All layers once."""
    global AUX
    AUX = AUX or torch.cuda.Stream()
    for number in range(layers.layers):
        for name in layers.names:
            x = inputs[LINEARS[name][0]]
            if way == "base":
                torch.nn.functional.linear(x, layers.base[number][name])
                continue
            a, b, chosen = layers.a[number][name], layers.b[number][name], config(name)
            if way == "dual":
                main = torch.cuda.current_stream()
                AUX.wait_stream(main)
                with torch.cuda.stream(AUX):
                    h = shrink(x, a, some, chosen, overlap=False)
                y = torch.nn.functional.linear(x, layers.base[number][name])
                main.wait_stream(AUX)
                expand(y, h, b, some, chosen, overlap=False)
                continue
            y = torch.nn.functional.linear(x, layers.base[number][name])
            h = shrink(x, a, some, chosen, overlap=way == "pdl")
            expand(y, h, b, some, chosen, overlap=way == "pdl")


def tune(
    layers: Layers, name: str, tokens: int, some: Batch, shrinks: list[Config], expands: list[Config]
) -> tuple[list[tuple[float, Config]], list[tuple[float, Config]]]:
    """The fastest configurations of each kernel alone, and their microseconds a layer."""
    x = torch.randn(tokens, LINEARS[name][0], device="cuda", dtype=torch.bfloat16)
    y = torch.randn(tokens, sum(LINEARS[name][1]), device="cuda", dtype=torch.bfloat16)

    def ranked(configs: list[Config], work: Callable[[int, Config], object]) -> list[tuple[float, Config]]:
        found = []
        for config in configs:
            try:
                found.append(
                    (timed(lambda: [work(i, config) for i in range(layers.layers)] and None, 5) / layers.layers, config)
                )
            except Exception as error:
                print("skip", config, type(error).__name__, str(error)[:80])
        return sorted(found)

    one = ranked(shrinks, lambda i, c: shrink(x, layers.a[i][name], some, c, overlap=False))
    hs = {
        split: shrink(x, layers.a[0][name], some, one[0][1]._replace(split=split, block_k=128), overlap=False)
        for split in (2, 4, 8, 16)
    }
    two = ranked(expands, lambda i, c: expand(y, hs[c.split], layers.b[i][name], some, c, overlap=False))
    return one, two


def compile_some(jobs: list[tuple[int, int, int, str, Config, bool]]) -> None:
    """Fill Triton's cache, in a process of its own."""
    for tokens, slots, rank, name, config, first in jobs:
        layers = Layers([name], 1, min(slots, 2), rank)
        some = batch(tokens, min(slots, 2), 1)
        x = torch.zeros(tokens, LINEARS[name][0], device="cuda", dtype=torch.bfloat16)
        y = torch.zeros(tokens, sum(LINEARS[name][1]), device="cuda", dtype=torch.bfloat16)
        h = torch.zeros(config.split, len(LINEARS[name][1]), tokens, rank, device="cuda")
        try:
            if first:
                shrink(x, layers.a[0][name], some, config, overlap=False)
            else:
                expand(y, h, layers.b[0][name], some, config, overlap=False)
        except Exception:
            pass


def check(layers: Layers, name: str, tokens: int, slots: int, config: Config) -> float:
    """The largest error of one layer against float32, in units of the largest value."""
    chosen = torch.randint(-1, slots, (tokens,)).numpy().astype(np.int32)
    planned = plan(chosen)
    tables = []
    for table, block in zip(planned.tables, BLOCKS, strict=True):
        whole = np.zeros((most_tiles(tokens, slots, block), 4), dtype=np.int32)
        whole[: len(table)] = table
        tables.append(torch.from_numpy(whole).cuda())
    order = torch.zeros(tokens, dtype=torch.int32, device="cuda")
    order[: len(planned.order)] = torch.from_numpy(planned.order).cuda()
    x = torch.randn(tokens, LINEARS[name][0], device="cuda", dtype=torch.bfloat16)
    y = torch.randn(tokens, sum(LINEARS[name][1]), device="cuda", dtype=torch.bfloat16)
    wanted = y.float()
    for slot in range(slots):
        rows = torch.from_numpy(np.flatnonzero(chosen == slot)).cuda()
        if len(rows):
            wanted[rows] += torch.cat(
                [
                    (x[rows].float() @ a[slot, 0].float().T) @ b[slot, 0].float().T
                    for a, b in zip(layers.a[0][name], layers.b[0][name], strict=True)
                ],
                1,
            )
    some = Batch(order, tuple(tables))
    h = shrink(x, layers.a[0][name], some, config, overlap=True)
    expand(y, h, layers.b[0][name], some, config, overlap=True)
    return float((y.float() - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    """Tune, check and tell."""
    shrinks = [Config(s, k, w, t, 0, 0) for s, k, w, t in itertools.product((2, 4, 8, 16), (128, 256), (2, 4), (2, 4))]
    expands = [Config(s, 0, 0, 0, n, w) for s, n, w in itertools.product((2, 4, 8, 16), (128, 256, 512), (4, 8))]
    cases = [
        (256, 64, 64, 16, ("qkv", "o")),
        (256, 256, 256, 16, ("qkv", "o")),
        (256, 64, 64, 32, ("qkv", "o", "gate_up", "down")),
        (1, 1, 1, 16, ("qkv", "o")),
        (64, 64, 64, 16, ("qkv", "o")),
    ]
    sides = ((shrinks, True), (expands, False))
    jobs = {
        (r, n, c): (256, 64, r, n, c, f) for _, _, _, r, names in cases for n in names for cs, f in sides for c in cs
    }
    todo = list(jobs.values())
    clock = time.perf_counter()
    with ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_some, [todo[i::28] for i in range(28)]))
    print(f"compiled {len(todo)} in {time.perf_counter() - clock:.0f} s", flush=True)
    for tokens, slots, used, rank, names in cases:
        layers = Layers(names, 8 if slots > 64 or len(names) > 2 else 16, slots, rank)
        some = batch(tokens, slots, used)
        inputs = {k: torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16) for k in (HIDDEN, INNER)}
        chosen, text = {}, []
        for name in names:
            one, two = tune(layers, name, tokens, some, shrinks, expands)
            time_1, first = one[0]
            # more parts cost the second kernel a little: the pair counts
            _, time_1, first, time_2, second = min(
                (a + b, a, p, b, q) for a, p in one for b, q in two if p.split == q.split
            )
            chosen[name] = first._replace(block_n=second.block_n, expand_warps=second.expand_warps)
            into, outs = LINEARS[name]
            size_1, size_2 = used * rank * 2 * into * len(outs), used * rank * 2 * sum(outs)
            error = check(layers, name, tokens, slots, chosen[name])
            text.append(
                f"{name}: {tuple(chosen[name])} shrink {time_1:.1f} us {size_1 / time_1 / 1e6:.2f} TB/s expand {time_2:.1f} us {size_2 / time_2 / 1e6:.2f} TB/s err {error:.4f}"
            )
            for label, some_of in (("shrink", one), ("expand", two)):
                text.append(
                    f"   {label} "
                    + " ".join(f"{t:.1f}:{'/'.join(map(str, c))}" for t, c in [*some_of[:4], some_of[-1]])
                )
        ways = ("plain", "pdl", "dual", "base")
        times = {w: timed(lambda: forward(layers, inputs, some, w, chosen.__getitem__)) / layers.layers for w in ways}
        added = ", ".join(f"{w} +{times[w] - times['base']:.1f}" for w in ways[:-1])
        print(f"tokens {tokens} slots {slots} rank {rank}: base {times['base']:.1f} us a layer; {added}")
        for line in text:
            print("   ", line, flush=True)
        del layers
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
