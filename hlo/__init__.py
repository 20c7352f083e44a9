"""HLO, the Healthcare LLM Inference Optimizer: one medical LLM, many specialists, one endpoint.

These are the names that plugin authors and callers use. Importing this module loads no heavy library.
"""

from hlo.errors import HLOError
from hlo.hookspecs import hookimpl
from hlo.plugins.examples import read_examples
from hlo.records import (
    Adapter,
    AdapterVersion,
    Answer,
    Delta,
    Embeddings,
    Notice,
    Prompt,
    Question,
    Route,
    Sampling,
    SamplingOverrides,
    Score,
    Screening,
    Specialty,
    Timings,
    Usage,
)

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterVersion",
    "Answer",
    "Delta",
    "Embeddings",
    "HLOError",
    "Notice",
    "Prompt",
    "Question",
    "Route",
    "Sampling",
    "SamplingOverrides",
    "Score",
    "Screening",
    "Specialty",
    "Timings",
    "Usage",
    "hookimpl",
    "read_examples",
]
