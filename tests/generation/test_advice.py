"""What to change so that a model fits a GPU."""

from __future__ import annotations

import msgspec
import pytest

from hlo.generation import advice
from hlo.generation.advice import Card, fits, propose, remedy, smallest_card
from hlo.generation.base_model import BaseModel
from hlo.generation.memory import GIB, Demand, predict
from tests.generation.test_memory import mistral  # noqa: F401 - a fixture

DEMAND = Demand("none", 2, slots=2, rank=16, kinds=frozenset({"q_proj", "v_proj"}), max_model_len=32768)


def test_what_fits_needs_no_change(mistral: BaseModel) -> None:  # noqa: F811
    """On a GPU with room for all of it, the first proposal changes nothing."""
    (first, *_) = propose(mistral, DEMAND, Card(80 * GIB))
    assert first.changes == ()


@pytest.mark.parametrize("gib", [8, 10, 12, 16])
def test_every_proposal_fits(gib: int, mistral: BaseModel) -> None:  # noqa: F811
    """What is proposed fits by the prediction, the least change first, and none is more of another."""
    found = propose(mistral, DEMAND, Card(gib * GIB))
    assert found
    for one in found:
        assert one.share <= gib * GIB - advice.CONTEXT
        assert fits(one.demand, predict(mistral, one.demand).tokens(one.share))
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    settings = [{change.setting for change in one.changes} for one in found]
    assert not any(a <= b for number, b in enumerate(settings) for a in settings[:number])


def test_seven_billion_in_8_bit_on_8_gb_is_tight(mistral: BaseModel) -> None:  # noqa: F811
    """A 7B model in 8 bit with two adapters fits 8 GB only with a short context, small steps and little beside it."""
    (first, *_) = propose(mistral, DEMAND, Card(8 * GIB))
    assert first.demand.quantization == "fp8_per_channel"
    assert first.demand.max_model_len == 2048
    assert first.tokens < 4096


def test_nothing_helps_where_the_weights_do_not_fit(mistral: BaseModel) -> None:  # noqa: F811
    """Where not even 8-bit weights fit there is no proposal, and the remedy names the GPU that is enough."""
    assert propose(mistral, DEMAND, Card(6 * GIB)) == ()
    assert "a GPU of 20 GiB" in remedy(mistral, DEMAND, Card(6 * GIB))


def test_the_smallest_card_is_smallest(mistral: BaseModel) -> None:  # noqa: F811
    """A model in 16 bit takes a larger card than in 8 bit, and one above what has failed is larger than that."""
    wide, small = (
        smallest_card(mistral, DEMAND),
        smallest_card(mistral, msgspec.structs.replace(DEMAND, quantization="fp8_per_channel")),
    )
    assert wide is not None
    assert small is not None
    assert small < wide < (smallest_card(mistral, DEMAND, above=wide * GIB) or 0)


def test_what_has_failed_is_not_proposed(mistral: BaseModel) -> None:  # noqa: F811
    """Where the engine has tried and failed, the remedy changes something, whatever the prediction said."""
    assert remedy(mistral, DEMAND, Card(24 * GIB)) == ""
    assert "HLO_" in remedy(mistral, DEMAND, Card(24 * GIB), failed=True)


def test_a_share_that_others_hold_is_given_up(mistral: BaseModel) -> None:  # noqa: F811
    """Beside other processes, every proposal asks for no more than is free."""
    card = Card(80 * GIB, others=40 * GIB)
    for one in propose(mistral, DEMAND, card):
        assert one.share <= 40 * GIB - advice.CONTEXT


def test_spare_adapters_can_be_given_up(mistral: BaseModel) -> None:  # noqa: F811
    """Room for adapters to come is given up before what serves now."""
    slots = msgspec.structs.replace(DEMAND, slots=40, rank=64)
    found = propose(mistral, slots, Card(20 * GIB), spare=38)
    assert any(change.setting == "HLO_SPARE_ADAPTERS" for change in found[0].changes)
    assert found[0].demand.slots == 2
