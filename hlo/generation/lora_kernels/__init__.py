"""HLO's own Triton kernels for many LoRA adapters in one batch. The only importer of triton."""
