"""vLLM's plugin hook, called in each of vLLM's processes through an entry point: HLO's LoRA kernels, and no orphans.

Nothing of vLLM changes unless HLO started it and asked for its own kernels (`additional_config`). Where vLLM is not as
the kernels know it, its own stay in use, and the log says so.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

from hlo.generation.vllm_engine import orphan

logger = logging.getLogger("hlo")

KEY = "hlo_lora_kernels"
"""In vLLM's `additional_config`: the folders with tuned configurations, where HLO's kernels are to be used."""

OURS = "hlo.generation.vllm_engine.punica.HloPunicaWrapper"

# What the wrapper overrides or calls, with the arguments that it counts on.
_KNOWN = {
    "PunicaWrapperGPU.update_metadata": ("mapping", "lora_index_to_id", "max_loras", "vocab_size"),
    "BaseLinearLayerWithLoRA._apply_async_impl": ("x", "bias"),
    "BaseLinearLayerWithLoRA._get_quant_method": (),
    "BaseLayerWithLoRA.set_mapping": ("punica_wrapper",),
    "LoRAKernelMeta.make": ("max_loras", "max_num_tokens", "device"),
    "LRUCacheWorkerLoRAManager._apply_adapters": ("lora_requests",),
}


def register() -> None:
    """Make vLLM use HLO's wrapper where HLO asks for it (entry point group `vllm.general_plugins`)."""
    from vllm.platforms import current_platform

    orphan.end_with_parent()
    if not current_platform.is_cuda():
        return
    platform = type(current_platform)
    theirs = platform.get_punica_wrapper
    if getattr(theirs, "hlo", False):  # vLLM may call a plugin twice
        return

    def get_punica_wrapper(cls: Any) -> str:
        return OURS if wanted() is not None and _fits() else str(theirs())

    get_punica_wrapper.hlo = True  # type: ignore[attr-defined]
    platform.get_punica_wrapper = classmethod(get_punica_wrapper)


def wanted() -> list[str] | None:
    """The folders with tuned configurations, when HLO started this engine with its own kernels; else None."""
    from vllm import envs
    from vllm.config import get_current_vllm_config

    if not envs.VLLM_LORA_ENABLE_DUAL_STREAM:  # where vLLM lets a layer's product and its LoRA be computed as one
        return None
    extra = get_current_vllm_config().additional_config
    return extra.get(KEY) if isinstance(extra, dict) else None


def _fits() -> bool:
    """Whether the vLLM that is installed is as the kernels know it; if not, the log says where it differs."""
    try:
        wrong = _differences()
    except Exception as error:  # whatever a changed vLLM raises must not keep it from serving with its own kernels
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        logger.warning("vLLM's own LoRA kernels are used, not HLO's: this vLLM is another than they know (%s)", wrong)
    return not wrong


def _differences() -> str:
    classes = _classes()
    for name, arguments in _KNOWN.items():
        owner, _, method = name.partition(".")
        found = getattr(classes[owner], method, None)
        if found is None:
            return f"{name} is gone"
        missing = set(arguments) - set(inspect.signature(found).parameters)
        if missing:
            return f"{name} takes no {', '.join(sorted(missing))}"
    import hlo.generation.vllm_engine.punica  # noqa: F401 - what it imports must be there too

    return ""


def _classes() -> dict[str, type]:
    from vllm.lora.layers.base import BaseLayerWithLoRA
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.ops.triton_ops import LoRAKernelMeta
    from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    known = (PunicaWrapperGPU, BaseLinearLayerWithLoRA, BaseLayerWithLoRA, LoRAKernelMeta, LRUCacheWorkerLoRAManager)
    return {one.__name__: one for one in known}
