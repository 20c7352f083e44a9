"""bitsandbytes' int8 weights as compressed-tensors: the same numbers, under the names that vLLM knows."""

from __future__ import annotations

import warnings

import pytest
import torch

from hlo.generation.quantize import compressed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch's own, as compressed-tensors imports it
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
    from compressed_tensors.quantization import QuantizationConfig


@pytest.fixture
def weight() -> torch.Tensor:
    """An int8 matrix in which every value occurs."""
    return torch.arange(-128, 128).repeat(3).to(torch.int8).reshape(8, 96)


def test_packing_is_that_of_compressed_tensors(weight: torch.Tensor) -> None:
    """Packed weights are bit for bit what compressed-tensors packs, and unpack to what they were."""
    packed = compressed.pack(weight)
    assert torch.equal(packed, pack_to_int32(weight, 8))
    assert torch.equal(unpack_from_int32(packed, 8, weight.shape), weight)


def test_both_formats_stand_for_the_same_weights(weight: torch.Tensor) -> None:
    """Dequantised, `int-quantized` and `pack-quantized` give the same float32 weights, bit for bit."""
    absolute_maximum = torch.rand(8) + 0.1
    found = {}
    for form in (compressed.W8A8, compressed.WEIGHT_ONLY):
        whole = {
            name: tensor
            for given in (("l.weight", weight), ("l.SCB", absolute_maximum), ("l.weight_format", torch.tensor(0)))
            for name, tensor in compressed.translate(*given, form)
        }
        if form == compressed.WEIGHT_ONLY:
            assert sorted(whole) == ["l.weight_packed", "l.weight_scale", "l.weight_shape"]
            shape = torch.Size(whole["l.weight_shape"].tolist())
            integers = unpack_from_int32(whole["l.weight_packed"], 8, shape)
        else:
            assert sorted(whole) == ["l.weight", "l.weight_scale"]
            integers = whole["l.weight"]
        assert whole["l.weight_scale"].shape == (8, 1)
        found[form] = integers.float() * whole["l.weight_scale"]
    assert torch.equal(found[compressed.W8A8], found[compressed.WEIGHT_ONLY])
    assert torch.equal(found[compressed.W8A8], weight.float() * (absolute_maximum / 127)[:, None])


@pytest.mark.parametrize("form", [compressed.W8A8, compressed.WEIGHT_ONLY])
def test_what_is_not_int8_stays_as_it_is(form: str) -> None:
    """Embeddings and norms pass under their own names."""
    tensor = torch.ones(4, 4, dtype=torch.bfloat16)
    ((name, found),) = compressed.translate("model.embed_tokens.weight", tensor, form)
    assert (name, found) == ("model.embed_tokens.weight", tensor)


def test_the_configuration_says_what_the_weights_are() -> None:
    """compressed-tensors reads the configuration as 8-bit rows, with a scale for each token in W8A8 alone."""
    for form, dynamic in ((compressed.W8A8, True), (compressed.WEIGHT_ONLY, False)):
        read = QuantizationConfig.model_validate(compressed.quantization_config(form, ("lm_head",)))
        group = read.config_groups["group_0"]
        assert (read.format, read.ignore) == (form, ["lm_head"])
        assert (group.weights.num_bits, group.weights.strategy, group.weights.symmetric) == (8, "channel", True)
        assert (group.input_activations is not None and group.input_activations.dynamic) is dynamic
