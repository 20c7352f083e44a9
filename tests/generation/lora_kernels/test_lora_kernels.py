"""HLO's LoRA kernels: planning, choosing configurations, and the kernels themselves in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.generation.lora_kernels import configs
from hlo.generation.lora_kernels.batch import Batch
from hlo.generation.lora_kernels.configs import Chooser, Config, Configs, Layer, Tuned
from hlo.generation.lora_kernels.tiles import BLOCKS, NO_ADAPTER, SMALL, most_tiles, plan, slots_of

LAYER = Layer(4096, (4096,), 16)
ONE, OTHER, THIRD = (Config(split, 128, 4, 2, 128, 4) for split in (1, 2, 4))


@given(st.lists(st.integers(NO_ADAPTER, 5), max_size=200))
def test_each_token_with_an_adapter_is_in_one_tile_of_that_adapter(slots: list[int]) -> None:
    """The tiles of a plan hold each token with an adapter once, with its own slot, and no other token."""
    order, tables = plan(np.array(slots, dtype=np.int64))
    for table, block in zip(tables, BLOCKS, strict=True):
        found = [(int(token), int(slot)) for slot, at, n, _ in table for token in order[at : at + n]]
        assert sorted(found) == [(token, slot) for token, slot in enumerate(slots) if slot != NO_ADAPTER]
        assert all(0 < n <= block for n in table[:, 2])
        assert len(table) <= most_tiles(len(slots), 6, block)


@given(st.lists(st.integers(0, 9), max_size=50), st.permutations([None, *range(1, 9), 9]))
def test_tokens_find_the_slots_of_their_adapters(ids: list[int], slots: list[int | None]) -> None:
    """A token's slot is the one that its adapter is in, whatever the order of the slots; 0 is no adapter."""
    found = slots_of(np.array(ids, dtype=np.int64), slots)
    assert found.tolist() == [NO_ADAPTER if one == 0 else slots.index(one) for one in ids]


def test_an_adapter_without_a_slot_is_refused() -> None:
    """A token whose adapter is in no slot is an error, not another adapter's token."""
    with pytest.raises(ValueError, match="adapter 7 is in no slot"):
        slots_of(np.array([1, 7]), [1, None])


def test_a_new_plan_leaves_nothing_of_the_old_one() -> None:
    """After a batch of fewer tokens, the rest of each table is empty; without adapters, all of it."""
    batch = Batch(32, 4, "cpu")
    assert batch.update(np.arange(32) % 4)
    assert batch.update(np.array([2, NO_ADAPTER, 2]))
    for table in batch.tables:
        assert table[0].tolist() == [2, 0, 2, 0]
        assert not table[1:].any()
    assert not batch.update(np.full(3, NO_ADAPTER))
    assert not any(table.any() for table in batch.tables)


def test_the_next_larger_tuned_batch_counts() -> None:
    """A batch takes what was tuned for the next larger one, or the largest; never one with tiles of another size."""
    chooser = Chooser([Tuned(LAYER, 64, OTHER), Tuned(LAYER, 1, ONE), Tuned(LAYER, 4096, THIRD)])
    assert [chooser.choose(LAYER, tokens) for tokens in (1, 2, 64, SMALL)] == [ONE, OTHER, OTHER, OTHER]
    assert [chooser.choose(LAYER, tokens) for tokens in (SMALL + 1, 10_000)] == [THIRD, THIRD]
    assert chooser.choose(Layer(4096, (4096,), 32), 64) == configs.by_rule(LAYER, 64)


@pytest.mark.parametrize("tokens", [1, 64, 8192])
def test_a_rule_never_cuts_finer_than_the_inputs(tokens: int) -> None:
    """By rule, small layers are not divided into more parts than they have inputs for."""
    made = configs.by_rule(Layer(128, (64,), 8), tokens)
    assert made.split == 1 or made.split * made.block_k <= 128


def test_the_operators_file_comes_first_and_another_format_is_passed_over(tmp_path: Path) -> None:
    """Of two files for a GPU the first folder's counts; one of another format is as if it were not there."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    for folder, config in ((own, ONE), (shipped, OTHER)):
        folder.mkdir()
        content = Configs(configs.FORMAT, "Some GPU", (Tuned(LAYER, 1, config),))
        (folder / "Some_GPU.json").write_bytes(msgspec.json.encode(content))
    chooser, path = configs.load("Some GPU", [own, shipped])
    assert (chooser.choose(LAYER, 1), path) == (ONE, own / "Some_GPU.json")
    (own / "Some_GPU.json").write_text('{"format": 0}')
    assert configs.load("Some GPU", [own, shipped])[1] == shipped / "Some_GPU.json"
    assert configs.load("Another GPU", [own, shipped])[1] is None


def test_what_ships_can_be_read() -> None:
    """The configurations that HLO brings for the H200 are read, and hold the layers of a Mistral-7B at two ranks."""
    chooser, path = configs.load("NVIDIA H200", [configs.SHIPPED])
    assert path is not None
    attention = [Layer(4096, outputs, rank) for outputs in ((4096, 1024, 1024), (4096,)) for rank in (16, 32)]
    assert chooser.layers >= {*attention, Layer(4096, (14336, 14336), 32), Layer(14336, (4096,), 32)}


def test_the_kernels_add_what_float32_adds() -> None:
    """In every mix of adapters, none and empty ones, of ranks 8 to 64, in both types, errors are those of rounding."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.generation.lora_kernels.mixes"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 34
    assert {name: error for name, error in found.items() if not error <= 1} == {}


def test_the_kernels_compile_for_the_gpu(tmp_path: Path) -> None:
    """What the interpreter takes, the compiler takes too: the kernels compile for an H200, and fit its memory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.generation.lora_kernels.compiling"],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert sizes
    assert max(size for pair in sizes.values() for size in pair) < 228 * 1024
