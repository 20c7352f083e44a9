"""Triton kernels that add LoRA to the output of a linear layer, for batches that mix adapters.

With x the tokens' inputs and A, B the matrices of each token's adapter, y += B A x in two steps: `shrink` makes h = A x
(rank values a token), `expand` adds B h. After Punica (Chen et al., arXiv:2310.18547) and vLLM's own kernels, but each
program is given one tile of `tiles.py`, and partial sums over the inputs stay apart and are added by `expand`: nothing
has to be zeroed, nothing is added atomically, and results do not depend on timing.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["rows"])
def shrink_kernel(
    x,
    a0,
    a1,
    a2,
    h,
    order,
    tiles,
    x_stride,
    rows,
    K: tl.constexpr,
    R: tl.constexpr,
    SLICES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LARGE: tl.constexpr,
    OVERLAP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """`hlo.generation.lora_kernels.ops.shrink`: a program for each (tile, part of the inputs), slice."""
    if OVERLAP:  # `expand` may start and fetch its weights; it waits for this kernel's end before it reads h
        gdc_launch_dependents()
    pid = tl.program_id(0)
    which = tl.program_id(1)
    split = pid % SPLIT
    tile = tiles + (pid // SPLIT) * 4
    count = tl.load(tile + 2)
    if count == 0:
        return
    slot = tl.load(tile).to(tl.int64)
    first = tl.load(tile + 1)
    a = a0
    if SLICES > 1:
        if which == 1:
            a = a1
        elif which == 2:
            a = a2
    PART: tl.constexpr = (K + SPLIT * BLOCK_K - 1) // (SPLIT * BLOCK_K) * BLOCK_K
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    k = split * PART + tl.arange(0, BLOCK_K)
    tokens = tl.load(order + first + m, mask=m < count, other=0)
    if LARGE:
        tokens = tokens.to(tl.int64)
    x_at = x + (tokens[:, None] * x_stride + k[None, :])
    a_at = a + slot * (R * K) + (r[:, None] * K + k[None, :])
    sums = tl.zeros((BLOCK_R, BLOCK_M), dtype=tl.float32)
    for at in range(0, PART, BLOCK_K):
        if K % (SPLIT * BLOCK_K) == 0:
            if R == BLOCK_R:
                weights = tl.load(a_at)
            else:
                weights = tl.load(a_at, mask=r[:, None] < R, other=0.0)
            inputs = tl.load(x_at, mask=(m < count)[:, None], other=0.0)
        else:
            inside = (k + at)[None, :] < K
            weights = tl.load(a_at, mask=(r[:, None] < R) & inside, other=0.0)
            inputs = tl.load(x_at, mask=(m < count)[:, None] & inside, other=0.0)
        if WIDE:
            inputs = inputs.to(tl.float32)
            weights = weights.to(tl.float32)
        sums = tl.dot(weights, tl.trans(inputs), sums, input_precision="ieee")
        x_at += BLOCK_K
        a_at += BLOCK_K
    into = h + ((split * SLICES + which) * rows + first) * BLOCK_R
    tl.store(into + (m[None, :] * BLOCK_R + r[:, None]), sums, mask=(m < count)[None, :])


@triton.jit(do_not_specialize=["rows"])
def expand_kernel(
    y,
    b0,
    b1,
    b2,
    h,
    order,
    tiles,
    y_stride,
    rows,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    R: tl.constexpr,
    SLICES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUN: tl.constexpr,
    LARGE: tl.constexpr,
    OVERLAP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """`hlo.generation.lora_kernels.ops.expand`: a program for each `RUN` blocks of outputs of one slice, tile."""
    tile = tiles + tl.program_id(1) * 4
    count = tl.load(tile + 2)
    if count == 0:
        return
    slot = tl.load(tile).to(tl.int64)
    first = tl.load(tile + 1)
    run = tl.program_id(0)
    which = 0
    column = 0
    width = N0
    b = b0 + slot * (N0 * R)
    STEP: tl.constexpr = BLOCK_N * RUN
    if SLICES > 1:
        FIRST: tl.constexpr = (N0 + STEP - 1) // STEP
        SECOND: tl.constexpr = FIRST + (N1 + STEP - 1) // STEP
        if run >= SECOND:
            which = 2
            column = N0 + N1
            width = N2
            b = b2 + slot * (N2 * R)
            run -= SECOND
        elif run >= FIRST:
            which = 1
            column = N0
            width = N1
            b = b1 + slot * (N1 * R)
            run -= FIRST
    EVEN: tl.constexpr = (N0 % STEP == 0) & (N1 % STEP == 0) & (N2 % STEP == 0) & (R == BLOCK_R)
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    n = run * STEP + tl.arange(0, BLOCK_N)
    b_at = b + (n[:, None] * R + r[None, :])
    if EVEN:
        weights = tl.load(b_at)
    else:
        weights = tl.load(b_at, mask=(n < width)[:, None] & (r < R)[None, :], other=0.0)
    tokens = tl.load(order + first + m, mask=m < count, other=0)
    if LARGE:
        tokens = tokens.to(tl.int64)
    y_at = y + (tokens[None, :] * y_stride + (column + n)[:, None])
    mask = (m < count)[None, :]
    if not EVEN:
        mask = mask & (n < width)[:, None]
    before = tl.load(y_at, mask=mask, other=0.0)
    if OVERLAP:
        gdc_wait()
    h_at = h + (which * rows + first) * BLOCK_R + (m[None, :] * BLOCK_R + r[:, None])
    sums = tl.zeros((BLOCK_R, BLOCK_M), dtype=tl.float32)
    for _ in tl.static_range(SPLIT):
        sums += tl.load(h_at, mask=(m < count)[None, :], other=0.0)
        h_at += SLICES * rows * BLOCK_R
    sums = sums.to(weights.dtype)
    if WIDE:
        sums = sums.to(tl.float32)
    for done in tl.static_range(RUN):
        now, y_now, mask_now = weights, y_at, mask
        added_to = before
        if done + 1 < RUN:  # what comes next is fetched while this is computed
            n += BLOCK_N
            b_at += BLOCK_N * R
            y_at += BLOCK_N
            if EVEN:
                weights = tl.load(b_at)
            else:
                weights = tl.load(b_at, mask=(n < width)[:, None] & (r < R)[None, :], other=0.0)
                mask = (m < count)[None, :] & (n < width)[:, None]
            before = tl.load(y_at, mask=mask, other=0.0)
        if WIDE:
            now = now.to(tl.float32)
        added = tl.dot(now, sums, input_precision="ieee")
        tl.store(y_now, (added_to.to(tl.float32) + added).to(y.dtype.element_ty), mask=mask_now)
