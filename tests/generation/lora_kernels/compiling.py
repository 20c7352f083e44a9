"""Compiles the LoRA kernels for an H200, as `ops` launches them; needs no GPU. Prints the programs' shared memory."""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hlo.generation.lora_kernels import configs, kernels
from hlo.generation.lora_kernels.tiles import BLOCKS, SMALL

TYPES = {"h": "*fp32", "order": "*i32", "tiles": "*i32", "x_stride": "i32", "y_stride": "i32", "rows": "i32"}
LAYERS = [configs.Layer(4096, (4096, 1024, 1024), rank) for rank in (8, 16, 64)] + [configs.Layer(14336, (4096,), 32)]


def compiled(kernel: Any, constants: dict[str, Any], **options: int) -> int:
    """Bytes of shared memory."""
    names = kernel.arg_names
    types = {name: TYPES.get(name, "*bf16") for name in names if name not in constants}
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if name in types and name != "rows"}
    source = ASTSource(
        kernel,
        types | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    return int(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)


def main() -> None:
    """Every third layer that HLO brings configurations for, and by rule others of a Mistral-7B."""
    chooser, _ = configs.load("NVIDIA H200", [configs.SHIPPED])
    found = {}
    for layer in (*sorted(chooser.layers, key=repr)[::3], *LAYERS):
        rank, outputs = layer.rank, layer.outputs
        for tokens in (1, 256, 8192):
            config = chooser.choose(layer, tokens)
            common = {
                "R": rank,
                "SLICES": len(outputs),
                "SPLIT": config.split,
                "BLOCK_M": BLOCKS[tokens > SMALL],
                "BLOCK_R": max(16, rank),
                "LARGE": tokens > SMALL,
                "OVERLAP": True,
                "WIDE": False,
            }
            widths = dict(zip(("N0", "N1", "N2"), (*outputs, 0, 0), strict=False))
            found[f"{layer}, {tokens} tokens"] = [
                compiled(
                    kernels.shrink_kernel,
                    common | {"K": layer.inputs, "BLOCK_K": config.block_k},
                    num_warps=config.shrink_warps,
                    num_stages=config.shrink_stages,
                ),
                compiled(
                    kernels.expand_kernel,
                    common | widths | {"BLOCK_N": config.block_n, "RUN": config.run},
                    num_warps=config.expand_warps,
                ),
            ]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
