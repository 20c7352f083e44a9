"""The engine `transformers`: Transformers and PEFT in this process, where there is no vLLM.

One worker thread owns the model. Requests that come together are one cohort: a batch in which each row has its own
adapter. In each round every cohort makes one token for each of its rows, so a newcomer, who founds the next cohort,
never waits for a long answer to end. What a request gets (sampling, stop strings, counting of tokens, refusals) is what
`hlo.generation.vllm_engine` gives it.

    engine, checks      what callers see; what is refused before the worker hears of it
    worker, commands    the thread, and what it can be told
    rounds, cohort      who waits and who is computed; one batch with its KV cache, and its rows
    sampling, text      a row's next token; its tokens' text, up to a stop string
    model, loading      logits and scores; reading the model's files
    lora                adapters in the model

The first four import no library: importing the engine is light. The others are imported in the worker's thread.
"""

from __future__ import annotations

from hlo.generation.transformers_engine.checks import version
from hlo.generation.transformers_engine.engine import TransformersEngine

__all__ = ["TransformersEngine", "version"]
