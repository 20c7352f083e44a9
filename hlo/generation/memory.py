"""Predicts, from configuration alone, what vLLM will report of a device's memory. Sizes are in bytes.

vLLM divides its share of a GPU (HLO_GPU_MEMORY_UTILIZATION of all of it): weights and adapter slots, which it reports
as "Model loading took"; the peak of a profiling run over a full batch; CUDA graphs; what its libraries and its sampler
keep; and the KV cache gets the rest. `benchmarks/memory.py` holds each against what vLLM reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from hlo.contracts import EngineOptions
from hlo.generation.base_model import BaseModel

GIB = 2**30

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM has buffers and kernels (vllm/config/lora.py)."""

# vLLM joins these layers, and keeps buffers for all of them as soon as adapters touch one.
_JOINED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))

# Layers that tensor parallelism divides by their inputs; all others are divided by their outputs.
_DIVIDED_BY_INPUTS = frozenset({"o_proj", "out_proj", "down_proj", "fc2", "c_proj", "dense_4h_to_h"})

# Requests and tokens in a step where nothing is said, for a server (vllm/engine/arg_utils.py,
# get_batch_defaults): on a CPU, on most GPUs, and on those of at least `_LARGE`.
_STEP_CPU, _STEP_GPU, _STEP_LARGE = (128, 2048), (256, 2048), (1024, 8192)
_LARGE = 70 * GIB

_VOCABULARY_MULTIPLE = 64  # embeddings and head are padded to it
_SCALE = 4  # a float32 for each row of an 8-bit weight

# What the profiling run does not see: modules that CUDA loads, handles, workspaces of attention and of the allocator.
_LIBRARIES = 118 * 2**20  # 115 and 118 MiB on an H200
_COMPILED = 245 * 2**20  # more where the model is compiled and its graphs are captured, on an H200
# A captured graph keeps its kernels' arguments and the graph's nodes; the largest one's activations are shared by all.
_GRAPH = 6 * 2**20  # on an H200: 172 graphs of 32 layers with LoRA
# On a CPU: Python, torch and vLLM themselves, in the engine's process.
_CPU_PROCESS = int(1.5 * GIB)


class Demand(Struct, frozen=True):
    """What an engine is to hold and to do at once. Lengths are in tokens; `slots` counts adapters on the device.

    The model is divided among `devices`; everything is predicted for one of them.
    """

    quantization: str
    bytes_per_value: int
    slots: int
    rank: int
    kinds: frozenset[str]
    max_model_len: int
    max_num_seqs: int = _STEP_GPU[0]
    max_num_batched_tokens: int = _STEP_GPU[1]
    kv_cache_dtype: str = "auto"
    eager: bool = False
    device: str = "cuda"
    devices: int = 1

    @classmethod
    def of(cls, options: EngineOptions, model: BaseModel, gpu: int = 0) -> Demand:
        """What an engine started with these options holds; the operator's own arguments come first, as in vLLM.

        `gpu` is the GPU's whole memory: where nothing is said, vLLM takes larger steps on a large one.
        """
        given = {name: getattr(options, name, None) for name in ("max_model_len", "max_num_seqs", "quantization")}
        given |= {name: getattr(options, name) for name in ("max_num_batched_tokens", "kv_cache_dtype")}
        given |= {name: value for name, value in options.arguments.items() if value is not None}
        length = int(given["max_model_len"] or model.context)
        step = _STEP_CPU if options.device == "cpu" else _STEP_LARGE if gpu >= _LARGE else _STEP_GPU
        seqs = int(given["max_num_seqs"] or step[0])
        tokens = int(given["max_num_batched_tokens"] or min(seqs * length, step[1]))
        slots = options.slots + (options.null is not None) if options.slots else 0
        return cls(
            quantization=str(given["quantization"] or "none"),
            bytes_per_value=4 if given.get("dtype", options.dtype) == "float32" else 2,  # "auto" is never float32
            slots=int(given.get("max_loras") or slots),
            rank=int(given.get("max_lora_rank") or padded_rank(options.rank)),
            kinds=frozenset(options.kinds),
            max_model_len=length,
            max_num_seqs=min(seqs, tokens),
            max_num_batched_tokens=tokens,
            kv_cache_dtype=str(given["kv_cache_dtype"]),
            # vLLM computes bitsandbytes' layers without graphs, whatever it is told.
            eager=bool(given.get("enforce_eager", options.enforce_eager)) or given["quantization"] == "bitsandbytes",
            device=options.device,
            devices=options.tensor_parallel_size,
        )


class Prediction(Struct, frozen=True):
    """Bytes for weights, adapter slots, the peak of a step, CUDA graphs, all else, and a block of the KV cache."""

    weights: int
    adapters: int
    activation: int
    graphs: int
    other: int
    block: int
    block_tokens: int

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.adapters + self.activation + self.graphs + self.other

    @property
    def per_token(self) -> int:
        """The KV cache of one token."""
        return self.block // self.block_tokens

    def tokens(self, share: int) -> int:
        """How many tokens of KV cache fit into vLLM's share beside the rest; below zero: not even the rest fits."""
        return (share - self.fixed) // self.block * self.block_tokens


def padded_rank(rank: int) -> int:
    """The rank that vLLM makes buffers for: the smallest of its own that is enough."""
    return next((known for known in RANKS if known >= rank), rank)


def predict(model: BaseModel, demand: Demand) -> Prediction:
    """Predict what vLLM 0.33 reports for a decoder with full attention; one with sliding windows needs less cache."""
    shape = _Shape.of(model)
    wide = demand.bytes_per_value
    cpu = demand.device == "cpu"
    cached = 1 if demand.kv_cache_dtype.startswith("fp8") else wide
    tokens = 128 if cpu else 16  # a block's
    process = _CPU_PROCESS if cpu else _LIBRARIES + (0 if demand.eager else _COMPILED)
    return Prediction(
        weights=_weights(model, shape, demand),
        adapters=_adapters(model.linears, demand),
        activation=_activation(shape, demand),
        graphs=0 if cpu or demand.eager else _graphs(shape, demand),
        # The sampler keeps counts and masks of all tokens of the vocabulary, for each request that there may be.
        other=process + demand.max_num_seqs * shape.vocabulary * 17 // 4,
        block=tokens * 2 * shape.layers * -(-shape.kv // demand.devices) * cached,
        block_tokens=tokens,
    )


class _Shape(Struct, frozen=True):
    """A decoder's widths, in values a token: hidden, queries, keys, the MLP's, and how many of the last it holds."""

    layers: int
    hidden: int
    heads: int
    kv: int
    inner: int
    branches: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool

    @classmethod
    def of(cls, model: BaseModel) -> _Shape:
        config = _text(model)
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        kinds = {name.rpartition(".")[2] for name in model.linears}
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads * head,
            kv=int(config.get("num_key_value_heads") or heads) * head,
            inner=int(config.get("intermediate_size") or 4 * hidden),
            branches=2 if kinds & {"gate_proj", "gate_up_proj"} else 1,
            head_dim=head,
            vocabulary=-int(config["vocab_size"]) // _VOCABULARY_MULTIPLE * -_VOCABULARY_MULTIPLE,
            positions=model.context,
            tied=bool(config.get("tie_word_embeddings", False)),
        )


def _text(model: BaseModel) -> Mapping[str, Any]:
    text: Mapping[str, Any] = model.config.get("text_config") or model.config
    return text


def _eight_bit(model: BaseModel, demand: Demand) -> bool:
    """Whether linear layers are held in 8 bit: asked for, or saved so."""
    saved = model.config.get("quantization_config") or {}
    return demand.quantization != "none" or bool(saved.get("load_in_8bit") or '"num_bits": 8' in json.dumps(saved))


def _weights(model: BaseModel, shape: _Shape, demand: Demand) -> int:
    """Linear layers of decoder blocks in 8 bit where that is asked for; embeddings, head and norms stay wide."""
    linear = sum(out * into for out, into in model.linears.values())
    padding = (shape.vocabulary - int(_text(model)["vocab_size"])) * shape.hidden * (1 if shape.tied else 2)
    rotary = shape.positions * shape.head_dim
    wide = (model.parameters - linear + padding + rotary) * demand.bytes_per_value
    if not _eight_bit(model, demand):
        return (wide + linear * demand.bytes_per_value) // demand.devices
    return (wide + linear + _SCALE * sum(out for out, _ in model.linears.values())) // demand.devices


def _adapters(linears: Mapping[str, tuple[int, int]], demand: Demand) -> int:
    """vLLM's stacked buffers: A and B of every slot, padded to the rank, for each layer that adapters touch.

    Of a layer that is divided among devices, each has that matrix in whole which meets the undivided side.
    """
    kinds = set(demand.kinds)
    for joined in _JOINED:
        if kinds & joined:
            kinds |= joined
    values = 0
    for name, (outputs, inputs) in linears.items():
        kind = name.rpartition(".")[2]
        if kind in kinds:
            divided, whole = (inputs, outputs) if kind in _DIVIDED_BY_INPUTS else (outputs, inputs)
            values += demand.rank * (-(-divided // demand.devices) + whole)
    return demand.slots * values * demand.bytes_per_value


def _activation(shape: _Shape, demand: Demand) -> int:
    """The peak of vLLM's profiling run: a full batch's MLP, or sampling for all requests, whichever is more.

    The MLP holds both branches and their product, while its input, the residual stream and the layer's own input are
    kept by those who called it; compiled code keeps as much.
    """
    tokens, wide = demand.max_num_batched_tokens, demand.bytes_per_value
    mlp = (shape.branches + 1) * shape.inner // demand.devices + 3 * shape.hidden  # adapters' are added in place
    attention = (2 * shape.heads + 2 * shape.kv) // demand.devices + 4 * shape.hidden
    step = tokens * max(mlp, attention) * wide
    # Logits as the head gives them, in float32, with the best of them masked, and as probabilities.
    sampling = (
        demand.max_num_seqs * shape.vocabulary * (wide + 12) + (tokens + demand.max_num_seqs) * shape.hidden * wide
    )
    return max(step, sampling)


def _graphs(shape: _Shape, demand: Demand) -> int:
    """CUDA graphs for batch sizes up to twice the requests, and for decoding up to all of them; twice with adapters."""
    largest = min(2 * demand.max_num_seqs, 512, demand.max_num_batched_tokens)
    sizes = _captured(largest)
    count = len(sizes) + sum(size <= demand.max_num_seqs for size in sizes)
    inner = (shape.branches + 1) * shape.inner // demand.devices
    pool = largest * (inner + 4 * shape.hidden) * demand.bytes_per_value
    return pool + count * (2 if demand.slots else 1) * _GRAPH


def _captured(largest: int) -> tuple[int, ...]:
    """The batch sizes that vLLM captures graphs for (vllm/config/vllm.py)."""
    return tuple(size for size in _sizes() if size <= largest)


def _sizes() -> Iterable[int]:
    yield from (1, 2, 4)
    yield from range(8, 256, 8)
    yield from range(256, 513, 16)
