"""What HLO asks of vLLM's worker, which holds the model in another process. Only that process imports this module."""

from __future__ import annotations

import logging
from typing import Any

from vllm.model_executor.layers.linear import LinearBase

from hlo.generation.vllm_engine import (
    holes,
    int8_loader,  # noqa: F401 - registers the load format before the model is read
    slots,
)
from hlo.generation.vllm_engine.reader import AdapterReader

# bitsandbytes warns in each layer of each step that it computes in float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

slots.install()
holes.install()


class HloWorker(AdapterReader):
    """Methods that vLLM's `collective_rpc` finds by name (`worker_extension_cls`); what they return is plain data."""

    def hlo_weights(self) -> dict[str, Any]:
        """What the model's weights are on this worker's device, in bytes; LoRA's own buffers are none of them.

        `linear` maps the dtype of each linear layer's weight to how many layers have it, the values that these layers
        stand for, and the bytes that they take, scales included.
        """
        model = self.get_model()  # type: ignore[attr-defined]
        linear: dict[str, dict[str, int]] = {}
        for module in model.modules():
            if isinstance(module, LinearBase):
                kind, size = _of_layer(module)
                row = linear.setdefault(kind, {"layers": 0, "values": 0, "bytes": 0})
                row["layers"] += 1
                row["values"] += _values(module)
                row["bytes"] += size
        seen = {one.data_ptr(): one.nbytes for one in (*model.parameters(), *model.buffers()) if one.numel()}
        return {"bytes": sum(seen.values()), "linear": linear}


def _of_layer(module: Any) -> tuple[str, int]:
    """The dtype of a layer's weight, and the bytes of all that it holds; vLLM may have renamed and repacked it."""
    held = [one for one in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if one.numel()]
    scales = getattr(getattr(module, "weight", None), "bnb_quant_state", {})  # bitsandbytes hangs them on the weight
    size = sum(one.nbytes for one in held) + sum(one.nbytes for one in scales.values() if hasattr(one, "nbytes"))
    if not held:
        return "none", 0
    return str(max(held, key=lambda one: one.nbytes).dtype).removeprefix("torch."), size


def _values(module: Any) -> int:
    """How many weights the layer stands for on this worker, however they are packed."""
    out = getattr(module, "output_size_per_partition", module.output_size)
    return int(out) * int(getattr(module, "input_size_per_partition", module.input_size))
