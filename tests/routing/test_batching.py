"""Batching: who waits for whom, and who hears of what."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hlo.errors import EncoderError
from hlo.routing.batching import BatchingEncoder
from hlo.testing import HashingEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Gated(HashingEncoder):
    """An encoder that waits at a gate, and remembers what it was given, in which thread; `threads` may call at once."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.batches: list[list[str]] = []
        self.seen: set[int] = set()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Wait at the gate; fail on the question `fail`, and with an error of ours on `ours`."""
        self.batches.append(list(questions))
        self.seen.add(threading.get_ident())
        self.entered.release()
        assert self.gate.acquire(timeout=60)
        if "fail" in questions:
            raise ValueError(f"a patient said {questions}")
        if "ours" in questions:
            raise EncoderError("Out of memory.", remedy="Buy some.")
        return super().encode(questions)

    async def until_entered(self) -> None:
        """Return when a batch has begun."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=60)


@pytest.fixture
def gated() -> Gated:
    """An encoder whose gate the test opens."""
    return Gated()


@pytest.fixture
async def batching(gated: Gated) -> AsyncIterator[BatchingEncoder]:
    """A batching encoder of at most four questions a batch."""
    encoder = BatchingEncoder(gated, max_batch=4)
    yield encoder
    for _ in range(20):
        gated.gate.release()
    encoder.close()


def ask(batching: BatchingEncoder, *questions: str) -> asyncio.Task[NDArray[np.float32]]:
    return asyncio.create_task(batching.encode(questions))


async def test_an_idle_encoder_starts_at_once(batching: BatchingEncoder, gated: Gated) -> None:
    """A lone question is encoded at once and alone: nothing waits for a batch to fill."""
    waiting = ask(batching, "a")
    await gated.until_entered()
    assert gated.batches == [["a"]]
    gated.gate.release()
    np.testing.assert_array_equal(await waiting, HashingEncoder().encode(["a"]))


async def test_what_arrives_meanwhile_is_one_batch(batching: BatchingEncoder, gated: Gated) -> None:
    """Questions that arrive while the encoder is busy go into its next batch, in their order."""
    tasks = [ask(batching, "a")]
    await gated.until_entered()
    tasks += [ask(batching, one) for one in "bcd"]
    await asyncio.sleep(0)
    for _ in range(2):
        gated.gate.release()
    await asyncio.gather(*tasks)
    assert gated.batches == [["a"], ["b", "c", "d"]]


async def test_batches_are_limited(batching: BatchingEncoder, gated: Gated) -> None:
    """No batch is larger than the limit, unless one caller alone brings more; callers are not split."""
    tasks = [ask(batching, "a")]
    await gated.until_entered()
    tasks += [ask(batching, "b", "c"), ask(batching, "d", "e", "f"), ask(batching, *"ghijk"), ask(batching, "l")]
    await asyncio.sleep(0)
    for _ in range(9):
        gated.gate.release()
    await asyncio.gather(*tasks)
    assert gated.batches == [["a"], ["b", "c"], ["d", "e", "f"], list("ghijk"), ["l"]]


async def test_everyone_gets_their_own(batching: BatchingEncoder, gated: Gated) -> None:
    """Each caller gets the vectors of their own questions, whatever else was in the batch."""
    for _ in range(20):
        gated.gate.release()
    wanted = [tuple(f"word{n} of{m}" for m in range(n % 3 + 1)) for n in range(12)]
    found = await asyncio.gather(*(batching.encode(questions) for questions in wanted))
    for questions, vectors in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(vectors, HashingEncoder().encode(questions))
    assert len(gated.batches) < len(wanted)


async def test_encoding_is_off_the_event_loop(batching: BatchingEncoder, gated: Gated) -> None:
    """The encoder runs in one thread of its own, and the event loop runs on meanwhile."""
    waiting = ask(batching, "a")
    await gated.until_entered()
    assert not waiting.done()
    for _ in range(2):
        gated.gate.release()
    await waiting
    await batching.encode(["b"])
    assert len(gated.seen) == 1
    assert threading.get_ident() not in gated.seen


async def test_one_who_leaves_disturbs_no_other(batching: BatchingEncoder, gated: Gated) -> None:
    """Cancelling one caller, while encoding or while waiting, leaves all others their answers."""
    running, other = ask(batching, "a"), ask(batching, "b")
    await gated.until_entered()
    waiting, last = ask(batching, "c"), ask(batching, "d")
    await asyncio.sleep(0)
    running.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    for _ in range(4):
        gated.gate.release()
    np.testing.assert_array_equal(await other, HashingEncoder().encode(["b"]))
    np.testing.assert_array_equal(await last, HashingEncoder().encode(["d"]))
    assert running.cancelled()
    assert waiting.cancelled()
    assert ["c"] not in gated.batches
    assert gated.batches[-1] == ["d"]


async def test_all_may_leave(batching: BatchingEncoder, gated: Gated) -> None:
    """When every caller has left, the next one is served like the first."""
    tasks = [ask(batching, "a"), ask(batching, "b")]
    await gated.until_entered()
    for task in tasks:
        task.cancel()
    for _ in range(4):
        gated.gate.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    np.testing.assert_array_equal(await batching.encode(["c"]), HashingEncoder().encode(["c"]))


async def test_an_error_reaches_all_of_its_batch_and_no_other(batching: BatchingEncoder, gated: Gated) -> None:
    """All callers in a failing batch hear of it, and the next batch is encoded as if nothing had been."""
    tasks = [ask(batching, "a")]
    await gated.until_entered()
    tasks += [ask(batching, "fail"), ask(batching, "b"), ask(batching, "c", "d", "e")]
    await asyncio.sleep(0)
    for _ in range(3):
        gated.gate.release()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [np.ndarray, EncoderError, EncoderError, np.ndarray]


async def test_an_error_repeats_no_patients_words(batching: BatchingEncoder, gated: Gated) -> None:
    """An encoder's error is told by its type, not by its text, which may quote the question."""
    gated.gate.release()
    with pytest.raises(EncoderError, match="ValueError") as caught:
        await batching.encode(["fail"])
    assert "patient" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_our_own_errors_pass(batching: BatchingEncoder, gated: Gated) -> None:
    """An error of HLO's own is told as it is."""
    gated.gate.release()
    with pytest.raises(EncoderError, match="Out of memory"):
        await batching.encode(["ours"])


async def test_a_closed_encoder_says_so() -> None:
    """After `close` a question is refused at once and does not wait for ever."""
    encoder = BatchingEncoder(HashingEncoder(), 4)
    encoder.close()
    with pytest.raises(EncoderError):
        await asyncio.wait_for(encoder.encode(["a"]), timeout=60)


async def test_what_follows_the_encoding_is_done_once_for_a_batch_and_off_the_loop() -> None:
    """Jobs of one batch with the same continuation share a call of it, in the worker, and each gets its own results."""
    encoder = Gated()
    batching = BatchingEncoder(encoder, 8)
    calls: list[tuple[int, int]] = []

    def first(vectors: NDArray[np.float32]) -> list[int]:
        calls.append((len(vectors), threading.get_ident()))
        return [int(row.argmax()) for row in vectors]

    def second(vectors: NDArray[np.float32]) -> list[str]:
        return [f"{len(vectors)}"] * len(vectors)

    try:
        waiting = asyncio.create_task(batching.encode(["first in line"]))
        await encoder.until_entered()
        words = ["heart", "brain", "lung", "skin"]
        jobs = [batching.encode_then(words[:1], first), batching.encode_then(words[1:3], first)]
        others = [batching.encode_then(words[3:], second), batching.encode(words[:2])]
        tasks = [asyncio.create_task(job) for job in (*jobs, *others)]
        await asyncio.sleep(0)
        encoder.gate.release(2)
        one, two, three, vectors = await asyncio.gather(*tasks)
        await waiting
    finally:
        batching.close()
    wanted = [int(row.argmax()) for row in HashingEncoder().encode(words)]
    assert [*one, *two] == wanted[:3]
    assert list(three) == ["1"]
    np.testing.assert_array_equal(vectors, HashingEncoder().encode(words[:2]))
    assert [rows for rows, _ in calls] == [3]
    assert {thread for _, thread in calls} == encoder.seen


async def test_nobody_waits_for_an_encoder_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """A question gives up after the time-out, and while the encoder still hangs none waits; then it is as before."""
    gated = Gated()
    batching = BatchingEncoder(gated, 4, timeout_s=0.2)
    with pytest.raises(EncoderError, match=r"not answered for 0\.2 seconds") as caught:
        await batching.encode(["first"])
    assert "HLO_ENCODER_TIMEOUT_S" in caught.value.remedy
    assert "not answered" in caplog.text
    for _ in range(20):  # more than could be waited for, one after the other, before this test gives up
        with pytest.raises(EncoderError):
            await asyncio.wait_for(batching.encode(["later"]), timeout=0.1)
    gated.gate.release(2)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(EncoderError):
                found = await batching.encode(["heart"])
                break
    np.testing.assert_array_equal(found, HashingEncoder().encode(["heart"]))
    assert gated.batches == [["first"], ["heart"]]
    batching.close()


async def test_threads_take_batches_at_the_same_time() -> None:
    """What comes while one thread is busy is taken by another; what comes while all are, by the first that is free."""
    gated = Gated(threads=2)
    batching = BatchingEncoder(gated, 4)
    asked = [asyncio.create_task(batching.encode(["heart"]))]
    await gated.until_entered()
    asked.append(asyncio.create_task(batching.encode(["lung"])))
    await gated.until_entered()
    asked += [asyncio.create_task(batching.encode([word])) for word in ("skin", "foot")]
    await asyncio.sleep(0)
    assert gated.batches == [["heart"], ["lung"]]
    gated.gate.release(3)
    found = [row for rows in await asyncio.gather(*asked) for row in rows]
    assert gated.batches[2:] == [["skin", "foot"]]
    assert len(gated.seen) == 2
    np.testing.assert_array_equal(found, HashingEncoder().encode(["heart", "lung", "skin", "foot"]))
    batching.close()


async def test_other_threads_keep_all_busy() -> None:
    """Who embeds many texts from another thread has them computed by all threads, in order, a batch each at a time."""
    gated = Gated(threads=2)
    batching = BatchingEncoder(gated, 2)
    words = ["heart", "lung", "skin", "foot", "hand", "eye", "ear"]
    asked = asyncio.create_task(asyncio.to_thread(batching.blocking().encode, words))
    await gated.until_entered()
    await gated.until_entered()
    assert sorted(gated.batches) == [["heart", "lung"], ["skin", "foot"]]
    gated.gate.release(4)
    np.testing.assert_array_equal(await asked, HashingEncoder().encode(words))
    batching.close()


async def test_one_thread_that_hangs_leaves_the_others() -> None:
    """While one thread hangs beyond the time-out, others answer."""
    gated = Gated(threads=2)
    batching = BatchingEncoder(gated, 4, timeout_s=0.2)
    with pytest.raises(EncoderError, match="not answered"):
        await batching.encode(["first"])
    later = asyncio.create_task(batching.encode(["heart"]))
    await gated.until_entered()
    await gated.until_entered()
    gated.gate.release(2)
    np.testing.assert_array_equal(await later, HashingEncoder().encode(["heart"]))
    batching.close()


async def test_a_hanging_encoder_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing leaves an encoder that hangs to itself, in a thread that does not keep the process."""
    monkeypatch.setattr("hlo.routing.batching._CLOSING_S", 0.05)
    gated = Gated()
    batching = BatchingEncoder(gated, 4, timeout_s=0.05)
    with pytest.raises(EncoderError):
        await batching.encode(["first"])
    batching.close()
    with pytest.raises(EncoderError, match="closed"):
        await batching.encode(["later"])
    gated.gate.release()
