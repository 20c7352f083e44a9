"""The engine `vllm`: vLLM's AsyncLLM in process, many LoRA adapters in one batch. The only importer of vllm."""

from hlo.generation.vllm_engine.engine import VllmEngine
from hlo.generation.vllm_engine.installed import needs_null, version

__all__ = ["VllmEngine", "needs_null", "version"]
