"""The embeddings of routing examples, which all of a run's servers, commands and tests of routing share.

To make them takes longer than all else of a server's start.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

_KEY = "TESTS_EMBEDDINGS"


@cache
def embeddings() -> Path:
    """The folder that has them; processes that this one starts know it by the environment."""
    if _KEY not in os.environ:
        os.environ[_KEY] = tempfile.mkdtemp(prefix="hlo-embeddings-")
        atexit.register(shutil.rmtree, os.environ[_KEY], ignore_errors=True)
    return Path(os.environ[_KEY])


def cache_dir(folder: Path) -> Path:
    """HLO's cache in `folder`: its own, but for the embeddings."""
    found = folder / "cache"
    found.mkdir(exist_ok=True)
    if not (found / "embeddings").exists():
        (found / "embeddings").symlink_to(embeddings())
    return found
