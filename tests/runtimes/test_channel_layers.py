"""The layers for ONNX compute what grouped layers do."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.families import REPRESENTATIVES, tiny_logits, tiny_model
from helpers.plans import random_plan
from helpers.tiny import MODEL_TYPES, RATIOS, logits, pruned
from torch import Tensor

from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.runtimes.channel_layers import ChannelLinear, use_channel_layers


def layer(inputs: int, outputs: int, *blocks: int, bias: bool = True) -> GroupedLinear:
    """Make a grouped layer whose blocks have random rows and columns."""
    made = GroupedLinear(inputs, outputs, *blocks, bias=bias).double()
    made.input_index = torch.randperm(inputs)[: made.input_index.numel()].view_as(made.input_index).int()
    made.output_index = torch.randperm(outputs)[: made.output_index.numel()].view_as(made.output_index).int()
    return made


@pytest.mark.parametrize("weights_right", [False, True])
@pytest.mark.parametrize("blocks", [(2,), (3,), (2, 4, 5), (1, 12, 3)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_single_layer(blocks: tuple[int, ...], bias: bool, weights_right: bool) -> None:
    grouped = layer(12, 24, *blocks, bias=bias)
    x = torch.randn(2, 5, 12).double()
    channels = ChannelLinear(grouped, weights_right=weights_right).double()
    torch.testing.assert_close(channels(x), grouped(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights_right", [False, True])
@pytest.mark.parametrize("first", [(2,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("second", [(4,), (2, 7, 3)], ids=str)
def test_two_layers_share_the_order_of_the_first(
    first: tuple[int, ...], second: tuple[int, ...], weights_right: bool
) -> None:
    one, two = layer(12, 24, *first), layer(24, 12, *second)
    x = torch.randn(2, 5, 12).double()
    opening = ChannelLinear(one, features_first_out=True, weights_right=weights_right).double()
    closing = ChannelLinear(two, opening.output_order, weights_right=weights_right).double()
    between: Tensor = opening(x)
    assert between.shape == (24, 2, 5)
    expected = two(torch.nn.functional.gelu(one(x)))
    torch.testing.assert_close(closing(torch.nn.functional.gelu(between)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("model_type", "ratio"), [*((name, 0.5) for name in MODEL_TYPES), *(("bert", ratio) for ratio in RATIOS[::2])]
)
def test_in_a_model(model_type: str, ratio: float) -> None:
    model = pruned(model_type, ratio).double()
    before = logits(model)
    use_channel_layers(find_encoder(model))
    assert not any(isinstance(module, GroupedLinear) for module in model.modules())
    assert any(isinstance(module, ChannelLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weights_right", [False, True])
@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_in_models_of_every_family(model_type: str, weights_right: bool) -> None:
    model = tiny_model(model_type, attn_implementation="eager").double()
    encoder = find_encoder(model)
    apply_plan(model, random_plan(encoder, random.Random(model_type), ["groups", "partial", "narrow groups"]))
    before = tiny_logits(model)
    use_channel_layers(encoder, weights_right)
    assert not any(isinstance(module, GroupedLinear) for module in model.modules())
    torch.testing.assert_close(tiny_logits(model), before, rtol=0, atol=1e-6)  # DeBERTa's LayerNorm is in float32


def test_both_opening_matrices_of_a_gated_network_have_one_order() -> None:
    model = tiny_model("nomic_bert").double()
    encoder = find_encoder(model)
    apply_plan(model, random_plan(encoder, random.Random(0), ["partial"]))
    before = tiny_logits(model)
    use_channel_layers(encoder)
    gate, up, down = (encoder.matrix(0, kind) for kind in ("W1", "W3", "W2"))
    for layer in (gate, up):
        assert isinstance(layer, ChannelLinear)
        assert layer.features_first_out
    assert isinstance(down, ChannelLinear)
    assert down.features_first_in
    assert torch.equal(gate.output_order, up.output_order)
    torch.testing.assert_close(tiny_logits(model), before, rtol=0, atol=1e-10)
