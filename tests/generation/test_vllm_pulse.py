"""A hanging engine is ended; with vLLM itself, the test is in tests/faults."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from hlo.generation.vllm_engine import pulse
from hlo.generation.vllm_engine.pulse import Pulse


class Engine:
    """Stands for vLLM's AsyncLLM with two processes: answers while `moves` is set."""

    def __init__(self) -> None:
        self.moves = asyncio.Event()
        self.asked = 0
        processes = [SimpleNamespace(pid=1_000_000_001), SimpleNamespace(pid=1_000_000_002)]
        self.engine_core = SimpleNamespace(
            resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=processes))
        )

    async def is_sleeping(self) -> bool:
        """As vLLM has it."""
        self.asked += 1
        await self.moves.wait()
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, which the test sets."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pulse, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were ended."""
    found: list[int] = []
    monkeypatch.setattr(pulse, "_kill", found.append)
    return found


async def test_an_engine_that_moves_is_left_alone(clock: SimpleNamespace, killed: list[int]) -> None:
    """It is asked again and again, but not while it is being asked, and not at once after it answered."""
    engine = Engine()
    felt = Pulse(engine, 10)
    engine.moves.set()
    for _ in range(30):
        felt.feel()
        felt.feel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        felt.feel()
        clock.now += 2
    assert (engine.asked, killed) == (30, [])


async def test_an_engine_that_hangs_is_ended(clock: SimpleNamespace, killed: list[int]) -> None:
    """One that has not answered in time is killed with all of its processes; a slow one is not."""
    engine = Engine()
    felt = Pulse(engine, 10)
    felt.feel()
    await asyncio.sleep(0)
    clock.now += 9.9
    felt.feel()
    assert (engine.asked, killed) == (1, [])
    clock.now += 0.1
    felt.feel()
    assert killed == [1_000_000_001, 1_000_000_002]


async def test_an_engine_that_answers_late_is_asked_anew(clock: SimpleNamespace, killed: list[int]) -> None:
    """The time is reckoned from the question that is open, not from an earlier one."""
    engine = Engine()
    felt = Pulse(engine, 10)
    for _ in range(3):
        felt.feel()
        await asyncio.sleep(0)
        clock.now += 9
        engine.moves.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        engine.moves.clear()
    felt.feel()
    await asyncio.sleep(0)
    felt.stop()
    assert (engine.asked, killed) == (4, [])


async def test_a_dead_engine_is_told_of_elsewhere(clock: SimpleNamespace, killed: list[int]) -> None:
    """What asking a dead engine raises troubles nobody here."""

    async def dead() -> bool:
        raise RuntimeError("dead")

    engine = Engine()
    engine.is_sleeping = dead  # type: ignore[method-assign]
    felt = Pulse(engine, 10)
    felt.feel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now += 60
    felt.feel()
    assert not killed


def test_a_process_is_ended_with_its_children() -> None:
    """Stopped processes, which can not end by themselves, are ended, children too; one that is gone is no error."""
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        child.suspend()
        psutil.Process(parent.pid).suspend()
        pulse._kill(parent.pid)
        assert parent.wait(10) == -signal.SIGKILL
        psutil.wait_procs([child], 10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    pulse._kill(parent.pid)
