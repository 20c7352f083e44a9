"""What do HLO's LoRA kernels cost beside the matrix products that they add to? Needs a GPU.

python -m benchmarks.lora_kernels              Mistral-7B's layers, several mixes of adapters
"""

from __future__ import annotations

import time

import msgspec
import torch

from benchmarks.report import OUT, tell
from hlo.generation.lora_kernels import configs, tuning
from hlo.generation.lora_kernels.configs import Layer

QKV, O_PROJ = (4096, (4096, 1024, 1024)), (4096, (4096,))
GATE_UP, DOWN = (4096, (14336, 14336)), (14336, (4096,))
CASES = (  # layers, rank, adapters, tokens
    ((QKV, O_PROJ), 16, 64, (1, 16, 64, 256, 512, 8192)),
    ((QKV, O_PROJ), 16, 256, (256,)),
    ((QKV, O_PROJ, GATE_UP, DOWN), 32, 64, (1, 256, 8192)),
)


def main() -> None:
    """Tune, and tell."""
    rows, found = [], []
    for shapes, rank, slots, tokens in CASES:
        clock = time.perf_counter()
        layers = [Layer(inputs, outputs, rank) for inputs, outputs in shapes]
        for one in tuning.tune(layers, slots, torch.bfloat16, tokens):
            layer, config = one.tuned.layer, one.tuned.config
            used = min(slots, one.tuned.tokens)
            moved = used * rank * 2 * (layer.inputs * len(layer.outputs) + sum(layer.outputs))
            rows.append(
                {
                    "layer": f"{layer.inputs} -> {'+'.join(map(str, layer.outputs))}",
                    "rank": rank,
                    "adapters": used,
                    "tokens": one.tuned.tokens,
                    "product, us": one.product_us,
                    "LoRA adds, us": one.whole_us - one.product_us,
                    "shrink, us": one.shrink_us,
                    "expand, us": one.expand_us,
                    "one after the other, us": one.pair_us - one.product_us,
                    "weights, TB/s": moved / max(one.whole_us - one.product_us, 0.01) / 1e6,
                    "config": "/".join(map(str, msgspec.structs.astuple(config))),
                }
            )
            if slots == 64:
                found.append(one)
        print(f"{len(rows)} rows after {time.perf_counter() - clock:.0f} s", flush=True)
    tell("lora_kernels", "What do the LoRA kernels cost?", rows)
    gpu = torch.cuda.get_device_name()
    (OUT / configs.filename(gpu)).write_bytes(msgspec.json.encode(tuning.configs(gpu, found)))


if __name__ == "__main__":
    main()
