"""Tests against the real thing: server process, vLLM, embedded model, encoder."""
