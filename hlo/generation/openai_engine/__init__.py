"""The engine `openai`: HLO in front of one or many `vllm serve --enable-lora`, over their OpenAI-compatible API.

Questions are routed, and prompts and their token ids made, here as for every engine: a server gets token ids and the
name of an adapter, so that its chat template and its defaults never matter.

    engine      what callers see
    pool        which servers are up, who gets a request, who gets it next
    server      one server: what it must be, its adapters, its answers
    looking     what `hlo doctor` tells of them
    wire        what it says, and how it says no

Importing the engine is light.
"""

from __future__ import annotations

from hlo.generation.openai_engine.engine import OpenAIEngine
from hlo.generation.openai_engine.looking import look

__all__ = ["OpenAIEngine", "look"]
