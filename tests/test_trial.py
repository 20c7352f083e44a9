"""The trial: what plugins do to their process is done to another one."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from hlo.plugins import trial

GOOD = "def hlo_specialties():\n    return []\n"
LIMIT_S = 3.0


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for the tests' modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, **sources: str) -> list[str]:
    """Write modules; their names."""
    for name, source in sources.items():
        (folder / f"hlo_trial_{name}.py").write_text(source, encoding="utf-8")
    return [f"hlo_trial_{name}" for name in sources]


def test_a_plugin_that_ends_the_process_does_not_end_this_one(modules: Path) -> None:
    """Plugins that exit, crash or hang, at import or in their hook, are told by number, and all others are tried."""
    bad = {
        "exits": "import os\nos._exit(3)\n",
        "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
        "hangs": "import time\ntime.sleep(600)\n",
        "hangs_in_the_hook": "import time\ndef hlo_specialties():\n    time.sleep(600)\n",
    }
    names = write(modules, first=GOOD, **bad, last=GOOD)
    assert trial.run(names, LIMIT_S) == {
        1: "ended the process (exit status 3)",
        2: "ended the process (signal SIGSEGV)",
        3: "did not come back within 3 s",
        4: "did not come back within 3 s",
    }


def test_a_hanging_first_plugin_is_told_by_its_number(modules: Path) -> None:
    """The very first plugin can hang too."""
    names = write(modules, hangs="import time\ntime.sleep(600)\n", last=GOOD)
    assert trial.run(names, LIMIT_S) == {0: "did not come back within 3 s"}


@pytest.mark.parametrize(
    "source",
    [
        "1 / 0\n",
        "raise SystemExit(3)\n",
        "raise KeyboardInterrupt\n",
        "import hlo_trial_no_such_module\n",
        "print('0')\nprint('done')\nimport os\nos.write(1, b'7\\ndone\\n')\n",
        "hlo_specialties = 1\n",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n",
        "import sys\nsys.stdin.read()\n",
    ],
)
def test_what_can_be_survived_is_no_failure(source: str, modules: Path) -> None:
    """What raises here raises in the server too, which tells of it; printing, reading and threads are no failure."""
    assert trial.run(write(modules, odd=source, last=GOOD), LIMIT_S) == {}


def test_nothing_is_left_running(modules: Path) -> None:
    """When a plugin hangs, its process is gone afterwards, and so is what it had started."""
    source = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    assert trial.run(write(modules, hangs=source), LIMIT_S) == {0: "did not come back within 3 s"}
    left = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)} - before
    assert left == set()


def test_no_plugins_need_no_process() -> None:
    """Without plugins there is nothing to try."""
    assert trial.run([], LIMIT_S) == {}
