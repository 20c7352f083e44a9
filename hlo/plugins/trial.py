"""Tries plugins in a process of their own first, where they can hang, crash or end the process without harm.

An import that raises is no concern of this module: it raises again in the server, which tells of it. What can not be
survived there is found here: a plugin that never comes back, and one that takes its process with it.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, TextIO, cast

# The parent's path comes first, since it need not be what a new interpreter would have.
_CHILD = (
    "import json, sys; told = json.loads(sys.stdin.readline()); sys.path[:] = told['path'];"
    "from hlo.plugins import trial; trial.child(told['modules'])"
)
_START_S = 60.0  # for the interpreter itself, on a busy machine


def run(modules: Sequence[str], timeout_s: float) -> dict[int, str]:
    """Import each module and call its `hlo_specialties`; what went wrong beyond repair, by the module's number.

    Each may take `timeout_s` seconds. One that fails costs a new process for those after it.
    """
    failures: dict[int, str] = {}
    first = 0
    while first < len(modules):
        failed = _run_from(first, modules, timeout_s)
        if failed is None:
            break
        number, reason = failed
        failures[number] = reason
        first = number + 1
    return failures


def child(modules: Sequence[str]) -> None:
    """What the process does: say each module's number before it is tried and once all are done."""
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what plugins print must not be taken for a report
    for number, module in enumerate(modules):
        report.write(f"{number}\n")
        try:
            hook = getattr(importlib.import_module(module), "hlo_specialties", None)
            if callable(hook):
                hook()
        except BaseException as error:  # the server imports it again, and tells why it failed
            sys.stderr.write(f"{module}: {type(error).__name__}\n")
    report.write("done\n")
    report.flush()
    os._exit(0)  # a plugin's threads and exit handlers could keep the process


def _run_from(first: int, modules: Sequence[str], timeout_s: float) -> tuple[int, str] | None:
    """Try the modules from `first` on; the number of the first that failed and what happened, or None."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter, and a constant
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        told: Any = {"path": sys.path, "modules": list(modules[first:])}
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        try:
            # The reader owns the stream: closed under its hands, it could fail, or keep who closes it waiting.
            stream, process.stdout = process.stdout, None
            threading.Thread(target=_read, args=(stream, lines), daemon=True).start()
            with cast("TextIO", process.stdin) as stdin:  # closed at once: who reads from it must not wait
                stdin.write(json.dumps(told) + "\n")
            return _watch(process, lines, first, timeout_s)
        finally:
            _kill(process)


def _watch(
    process: subprocess.Popen[str], lines: queue.SimpleQueue[str], first: int, timeout_s: float
) -> tuple[int, str] | None:
    current = None
    while True:
        try:
            line = lines.get(timeout=_START_S if current is None else timeout_s)
        except queue.Empty:
            return (first if current is None else current), f"did not come back within {timeout_s:g} s"
        if line == "done":
            return None
        if not line:
            status = process.wait()
            ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            return (first if current is None else current), f"ended the process ({ended})"
        current = first + int(line)


def _read(stream: TextIO, lines: queue.SimpleQueue[str]) -> None:
    with stream:
        for line in stream:
            lines.put(line.strip())
    lines.put("")


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # what the plugin has started goes too
        else:
            process.kill()
