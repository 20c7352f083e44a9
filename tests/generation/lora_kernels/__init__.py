"""Tests of HLO's LoRA kernels, and what they run in processes of its own."""
