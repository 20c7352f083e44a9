"""Which copy of a model gets a request, where vLLM runs several."""

from __future__ import annotations

from contextlib import ExitStack

from hlo.generation.affinity import FREE
from hlo.generation.vllm_engine.copies import Copies


def test_one_copy_is_no_choice() -> None:
    """With one copy vLLM is told nothing."""
    with Copies(1).take("a") as rank:
        assert rank is None


def test_an_adapter_stays_on_one_copy_and_spills_over() -> None:
    """An adapter's requests go to one copy, up to a batch of them, and come back when that has room."""
    copies = Copies(3)
    with ExitStack() as running:
        ranks = [running.enter_context(copies.take("hot")) for _ in range(2 * FREE)]
        assert set(ranks) <= {0, 1, 2}
        assert len(set(ranks[:FREE])) == 1
        assert len(set(ranks)) == 2
    with copies.take("hot") as rank:
        assert rank == ranks[0]


def test_requests_without_an_adapter_are_shared_out() -> None:
    """Requests for the base model go where least runs."""
    copies = Copies(3)
    with ExitStack() as running:
        assert sorted(running.enter_context(copies.take(None)) or 0 for _ in range(6)) == [0, 0, 1, 1, 2, 2]
