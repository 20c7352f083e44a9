"""Ends vLLM's processes with the one that started them: after SIGKILL nobody else tells them, and they hold the GPU."""

from __future__ import annotations

import multiprocessing
import os
import threading

KEY = "_HLO_ENGINE"
"""In the environment of processes that belong to an engine of HLO's."""


def end_with_parent() -> None:
    """In a process of an engine of HLO's, wait in a thread for its parent's end, and end then; elsewhere do nothing.

    vLLM's own way out needs a parent that still talks to it.
    """
    parent = multiprocessing.parent_process()
    if parent is None or KEY not in os.environ:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="hlo-orphan", daemon=True).start()
