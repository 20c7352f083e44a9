"""A plugin with an encoder and an engine that fail when they are told to, and a wall clock that can be set.

What they do is read from files in the server's folder, so that a test breaks and mends them while the server runs.
"""

from __future__ import annotations

import os
from pathlib import Path

_MODULE = """
import time
from pathlib import Path

from hlo import hookimpl
from hlo.errors import EngineDead
from hlo.generation.base_model import embedded_root
from hlo.hub import Hub
from hlo.routing import encoders
from hlo.testing import EchoEngine

ENCODER, ENGINE, CLOCK = Path("encoder"), Path("engine"), Path("clock")
_time, _time_ns = time.time, time.time_ns


def _ahead():
    return float(CLOCK.read_text()) if CLOCK.exists() else 0.0


time.time = lambda: _time() + _ahead()
time.time_ns = lambda: _time_ns() + int(_ahead() * 1e9)


class Encoder:
    def __init__(self, inner):
        self.name, self.fingerprint, self.dimension = inner.name, inner.fingerprint, inner.dimension
        self._inner = inner

    def encode(self, questions):
        while ENCODER.exists() and ENCODER.read_text() == "hang":
            time.sleep(0.02)
        if ENCODER.exists():
            raise RuntimeError(f"the words were {questions}")
        return self._inner.encode(questions)


class Engine(EchoEngine):
    @classmethod
    async def start(cls, options):
        if ENGINE.exists():
            raise RuntimeError("no device")
        return cls()

    async def check_health(self):
        if ENGINE.exists():
            raise EngineDead("The device is gone.")


@hookimpl
def hlo_encoder(name):
    if name == "brittle":
        return Encoder(encoders.load("", None, Hub(), embedded=embedded_root() / "models" / "hlo-encoder"))


@hookimpl
def hlo_engine(name):
    return Engine.start if name == "brittle" else None
"""


def install(folder: Path) -> str:
    """Write the plugin into `folder`, as if pip had installed it; the PYTHONPATH on which a server finds it."""
    info = folder / "hlo_brittle-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hlo-brittle\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hlo]\nbrittle = hlo_brittle\n")
    (folder / "hlo_brittle.py").write_text(_MODULE)
    return os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))
