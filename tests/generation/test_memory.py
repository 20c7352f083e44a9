"""Predictions of memory, from configuration alone; against vLLM's own figures they are held in tests/e2e."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hlo.contracts import EngineOptions
from hlo.generation.base_model import BaseModel
from hlo.generation.memory import GIB, Demand, Prediction, padded_rank, predict

ALL_LINEAR = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
NOTHING = Demand("none", 2, slots=0, rank=8, kinds=frozenset(), max_model_len=128)


def demand(**changes: Any) -> Demand:
    return msgspec.structs.replace(NOTHING, **changes)


@pytest.fixture
def mistral() -> BaseModel:
    """Mistral-7B-Instruct-v0.3: what its config.json says, and the shapes of its layers."""
    block = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)}
    block |= {"gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}
    linears = {f"layers.{layer}.{kind}": shape for layer in range(32) for kind, shape in block.items()}
    config = {
        "hidden_size": 4096,
        "head_dim": 128,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
    }
    return BaseModel("mistral", Path("mistral"), config, linears, 7_248_023_552, embedded=False)


def test_weights_are_parameters_times_bytes(mistral: BaseModel) -> None:
    """Weights take two bytes a value, and 8 bit leaves embeddings and head wide: 0.52 of it for Mistral-7B."""
    wide, small = (predict(mistral, demand(quantization=name)).weights for name in ("none", "fp8_per_channel"))
    assert wide / GIB == pytest.approx(13.5, rel=0.002)
    assert small / GIB == pytest.approx(7.01, rel=0.002)


@pytest.mark.parametrize(
    "saved", [{"load_in_8bit": True}, {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}}]
)
def test_a_checkpoint_that_is_saved_in_8_bit_is_small(saved: dict[str, Any], mistral: BaseModel) -> None:
    """What the checkpoint says of itself counts, whether or not the settings ask for 8 bit."""
    config = {**mistral.config, "quantization_config": saved}
    found = predict(msgspec.structs.replace(mistral, config=config), NOTHING)
    assert found.weights == predict(mistral, demand(quantization="fp8_per_channel")).weights


def test_a_divided_model_takes_less_of_each_device(mistral: BaseModel) -> None:
    """Of two devices each holds half of the weights and of the cache, and of adapters what the halves leave whole."""
    whole = predict(mistral, demand(slots=4, kinds=ALL_LINEAR))
    half = predict(mistral, demand(slots=4, kinds=ALL_LINEAR, devices=2))
    assert half.weights == pytest.approx(whole.weights / 2, rel=0.001)
    assert half.block * 2 == whole.block
    layer = sum(
        out / 2 + into for out, into in ((4096, 4096), (1024, 4096), (1024, 4096), (14336, 4096), (14336, 4096))
    )
    layer += sum(into / 2 + out for out, into in ((4096, 4096), (4096, 14336)))
    assert half.adapters == 4 * 8 * 32 * layer * 2
    assert half.activation < whole.activation


def test_adapters_are_two_matrices_a_layer(tiny_model: BaseModel) -> None:
    """A slot takes rank times (out + in) values for each layer that adapters touch."""
    found = predict(tiny_model, demand(slots=3, kinds=frozenset({"o_proj"})))
    assert found.adapters == 3 * 2 * 2 * 8 * (64 + 64)


@pytest.mark.parametrize("kinds", [{"q_proj"}, {"k_proj", "v_proj"}, {"q_proj", "k_proj", "v_proj"}])
def test_layers_that_vllm_joins_have_buffers_together(kinds: set[str], tiny_model: BaseModel) -> None:
    """As soon as adapters touch one of queries, keys and values, vLLM keeps buffers for all three."""
    found = predict(tiny_model, demand(slots=1, kinds=frozenset(kinds)))
    assert found.adapters == 2 * 2 * 8 * ((64 + 64) + 2 * (32 + 64))


@pytest.mark.parametrize(("rank", "padded"), [(1, 8), (8, 8), (9, 16), (48, 64), (600, 600)])
def test_ranks_are_padded_to_those_of_vllm(rank: int, padded: int) -> None:
    """vLLM has buffers for some ranks only; the smallest that is enough is taken."""
    assert padded_rank(rank) == padded


def test_the_cache_holds_keys_and_values_of_every_layer(mistral: BaseModel) -> None:
    """A token takes keys and values of each layer's key-value heads: 128 KiB in Mistral-7B, half of it in fp8."""
    assert predict(mistral, NOTHING).per_token == 128 * 1024
    assert predict(mistral, demand(kv_cache_dtype="fp8")).per_token == 64 * 1024


def test_a_step_takes_memory_for_its_tokens(mistral: BaseModel) -> None:
    """The activation peak grows with the tokens of a step, until sampling for all requests needs more."""
    peaks = [predict(mistral, demand(max_num_batched_tokens=tokens)).activation for tokens in (2048, 8192)]
    assert peaks[1] == 4 * peaks[0]
    few, many = (predict(mistral, demand(max_num_seqs=seqs)).activation for seqs in (16, 1024))
    assert few == peaks[0] < many


def test_adapters_take_nothing_of_a_step(mistral: BaseModel) -> None:
    """What adapters add is added in place: those of the MLP make a step no larger."""
    plain, with_mlp = (predict(mistral, demand(kinds=frozenset({kind}))).activation for kind in ("q_proj", "gate_proj"))
    assert with_mlp == plain


@pytest.mark.parametrize(
    ("changes", "loaded", "peak", "other", "tokens"),
    [
        (
            {"slots": 2, "rank": 16, "kinds": ALL_LINEAR - {"gate_proj", "up_proj", "down_proj"}},
            14_559_500_288,
            888_687_104,
            263_170_048,
            910_848,
        ),
        ({"slots": 8, "rank": 32, "kinds": ALL_LINEAR}, 15_879_657_472, 888_687_104, 266_315_520, 900_752),
    ],
)
def test_vllm_reported_what_is_predicted(
    changes: dict[str, Any], loaded: int, peak: int, other: int, tokens: int, mistral: BaseModel
) -> None:
    """Every part is within a tenth of what vLLM 0.33 reported on one H200 (benchmarks/memory.py --gpu, rows 0, 2)."""
    found = predict(mistral, demand(max_num_seqs=1024, max_num_batched_tokens=8192, eager=True, **changes))
    assert found.weights + found.adapters == pytest.approx(loaded, rel=0.1)
    assert found.activation == pytest.approx(peak, rel=0.1)
    assert found.other == pytest.approx(other, rel=0.1)
    assert found.tokens(135_098_892_288) == pytest.approx(tokens, rel=0.1)


def test_graphs_are_free_when_there_are_none(mistral: BaseModel) -> None:
    """Without CUDA graphs, they take nothing; with adapters, they are captured twice."""
    none, plain, twice = (predict(mistral, demand(**changes)).graphs for changes in ({"eager": True}, {}, {"slots": 2}))
    assert none == 0 < plain < twice < 2 * plain


@pytest.mark.parametrize("extra", [0, 511, 512, 5120])
def test_tokens_fill_what_is_left(extra: int) -> None:
    """As many whole blocks of the cache fit as there is room for beside the rest; below zero: not even the rest."""
    found = Prediction(weights=1, adapters=2, activation=3, graphs=4, other=5, block=512, block_tokens=16)
    assert found.tokens(15 + extra) == extra // 512 * 16
    assert found.tokens(14) < 0


def test_the_demand_is_what_vllm_would_do(tiny_model: BaseModel) -> None:
    """What nobody says is vLLM's default; the operator's own arguments come before HLO's, as in vLLM."""
    options = EngineOptions(Path(), "tiny", "cuda", "auto", "none", slots=2, rank=12, kinds=("q_proj",))
    plain = Demand.of(options, tiny_model)
    assert (plain.rank, plain.max_num_seqs, plain.max_num_batched_tokens) == (16, 256, 2048)
    large = Demand.of(options, tiny_model, 80 * GIB)
    assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 8192)
    small = Demand.of(msgspec.structs.replace(options, device="cpu"), tiny_model)
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (128, 2048)
    assert (plain.max_model_len, plain.bytes_per_value) == (tiny_model.context, 2)
    own = {"max_num_seqs": 8, "max_model_len": 16, "enforce_eager": True, "kv_cache_dtype": "fp8"}
    changed = Demand.of(msgspec.structs.replace(options, arguments=own), tiny_model)
    assert (changed.max_num_seqs, changed.max_num_batched_tokens) == (8, 128)
    assert (changed.eager, changed.kv_cache_dtype) == (True, "fp8")
