"""Launches the kernels: adds LoRA to the output of one linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import triton

from hlo.generation.lora_kernels.batch import Batch
from hlo.generation.lora_kernels.configs import Config, Layer
from hlo.generation.lora_kernels.kernels import expand_kernel, shrink_kernel
from hlo.generation.lora_kernels.tiles import BLOCKS, SMALL, most_tiles

MOST_SLICES = 3
HIGHEST_RANK = 128


def fits(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Whether the kernels can compute a layer with these stacked matrices."""
    return (
        len(a) == len(b) <= MOST_SLICES
        and all(one.dtype in (torch.bfloat16, torch.float16) and one.is_contiguous() for one in (*a, *b))
        and len({one.shape for one in a}) == 1
        and a[0].shape[-2] == b[0].shape[-1] <= HIGHEST_RANK
    )


def layer(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> Layer:
    """The layer that stacked matrices belong to: `a` (slots, 1, rank, in) each, `b` (slots, 1, out, rank) each."""
    return Layer(a[0].shape[-1], tuple(one.shape[-2] for one in b), a[0].shape[-2])


def partial_sums(tokens: int, a: Sequence[torch.Tensor], config: Config) -> torch.Tensor:
    """Memory for what `shrink` gives `expand`: float32, shape (split, slices, tokens, padded rank)."""
    padded = max(16, triton.next_power_of_2(a[0].shape[-2]))
    return torch.empty((config.split, len(a), tokens, padded), dtype=torch.float32, device=a[0].device)


def add_lora(
    product: Callable[[], torch.Tensor],
    x: torch.Tensor,
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    batch: Batch,
    config: Config,
    side: torch.cuda.Stream | None = None,
) -> torch.Tensor:
    """A layer's `product` with B A `x` added in place, with each token's own adapter.

    `product` makes a tensor of shape (..., out), which has as many rows as `x`. Where `config` forks, `shrink` runs
    beside it on the stream `side`; otherwise `expand` begins before `shrink` has ended, on GPUs that can do this.
    """
    h = partial_sums(x.shape[0], a, config)
    if config.fork and side is not None:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            shrink(x, h, a, batch, config, overlap=False)
        y = product()
        main.wait_stream(side)
        expand(y.flatten(0, -2), h, b, batch, config, overlap=False)
        return y
    y = product()
    overlap = dependent_launch(x.device)
    shrink(x, h, a, batch, config, overlap=overlap)
    expand(y.flatten(0, -2), h, b, batch, config, overlap=overlap)
    return y


def shrink(
    x: torch.Tensor, h: torch.Tensor, a: Sequence[torch.Tensor], batch: Batch, config: Config, *, overlap: bool
) -> None:
    """Write the partial sums of A x to `h`, in the order of `batch`.

    `x` has shape (tokens, in), each row contiguous; each of `a` (slots, 1, rank, in). With `overlap`, `expand` may
    begin before this has ended, and waits by itself; it must come next in the stream.
    """
    tokens, inputs = x.shape
    slots, rank = a[0].shape[0], a[0].shape[-2]
    large = tokens > SMALL
    grid = (most_tiles(tokens, slots, BLOCKS[large]) * config.split, len(a))
    shrink_kernel[grid](
        x,
        *_three(a),
        h,
        batch.order,
        batch.tables[large],
        x.stride(0),
        tokens,
        K=inputs,
        R=rank,
        SLICES=len(a),
        SPLIT=config.split,
        BLOCK_M=BLOCKS[large],
        BLOCK_R=h.shape[-1],
        BLOCK_K=config.block_k,
        LARGE=large,
        OVERLAP=overlap,
        WIDE=not x.is_cuda,  # Triton's interpreter, on a CPU, has no product of bfloat16
        num_warps=config.shrink_warps,
        num_stages=config.shrink_stages,
    )


def expand(
    y: torch.Tensor, h: torch.Tensor, b: Sequence[torch.Tensor], batch: Batch, config: Config, *, overlap: bool
) -> None:
    """Add B h to `y`, shape (tokens, sum of the slices' outputs), in place; each of `b` is (slots, 1, out, rank)."""
    tokens = y.shape[0]
    slots, rank = b[0].shape[0], b[0].shape[-1]
    large = tokens > SMALL
    widths = [one.shape[-2] for one in b]
    runs = sum(triton.cdiv(width, config.block_n * config.run) for width in widths)
    n0, n1, n2 = (*widths, 0, 0)[:MOST_SLICES]
    expand_kernel[(runs, most_tiles(tokens, slots, BLOCKS[large]))](
        y,
        *_three(b),
        h,
        batch.order,
        batch.tables[large],
        y.stride(0),
        tokens,
        N0=n0,
        N1=n1,
        N2=n2,
        R=rank,
        SLICES=len(b),
        SPLIT=h.shape[0],
        BLOCK_M=BLOCKS[large],
        BLOCK_R=h.shape[-1],
        BLOCK_N=config.block_n,
        RUN=config.run,
        LARGE=large,
        OVERLAP=overlap,
        WIDE=not y.is_cuda,
        num_warps=config.expand_warps,
        **({"launch_pdl": True} if overlap else {}),
    )


@lru_cache
def dependent_launch(device: torch.device) -> bool:
    """Whether a GPU can begin a kernel before the last one has ended (programmatic dependent launch, sm_90).

    CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
    """
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= (9, 0))


def _three(some: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return (*some, *(some[0],) * (MOST_SLICES - len(some)))
