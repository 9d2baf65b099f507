"""Matrices that are parts of one linear layer: taken out, put back, hooked and joined, consecutive or interleaved."""

from __future__ import annotations

import pytest
import torch
from helpers.families import tiny_batches, tiny_model
from torch import nn
from torch.nn.utils import parametrize

from pgb_lightning import MatrixPlan, PruningPlan, apply_plan, follow_state_dict
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import sublayer_of
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.fused import is_plain, join_parts, part_columns, part_of
from pgb_lightning.layers.fused import FusedLinear
from pgb_lightning.layers.linear import GroupedLinear

CPU = torch.device("cpu")

#: Consecutive parts, and parts that alternate head by head.
FUSED = ("modernbert", "deberta")


@pytest.fixture(params=FUSED)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return find_encoder(tiny_model(request.param))


def fused_of(encoder: Encoder) -> nn.Linear:
    fused = encoder.layers[0].get_submodule(encoder.family.paths["Q"])
    assert isinstance(fused, nn.Linear)
    return fused


@pytest.mark.parametrize("block", [None, 2, 4])
@pytest.mark.parametrize("count", [2, 3])
def test_parts_are_disjoint_equal_and_complete(count: int, block: int | None) -> None:
    size, outputs = 8 * count, torch.arange(8 * count)
    parts = [outputs[part_columns(size, number, count, block, CPU)] for number in range(count)]
    assert [len(part) for part in parts] == [8] * count
    assert sorted(torch.cat(parts).tolist()) == outputs.tolist()


def test_parts_compute_what_their_share_of_the_layer_computes(encoder: Encoder) -> None:
    fused, hidden = fused_of(encoder), torch.randn(5, encoder.hidden_size)
    heads = fused(hidden).view(5, -1, encoder.head_size)
    for number, kind in enumerate("QKV"):
        expected = heads[:, number::3] if encoder.family.interleaved else heads.chunk(3, dim=1)[number]
        torch.testing.assert_close(encoder.matrix(0, kind)(hidden), expected.flatten(1))
    points = {
        kind: columns
        for _, matrices in encoder.hook_points()
        for (layer, kind), columns in matrices.items()
        if not layer
    }
    for kind in "QKV":
        torch.testing.assert_close(fused(hidden)[:, points[kind]], encoder.matrix(0, kind)(hidden))


def test_a_stored_part_changes_only_its_share(encoder: Encoder) -> None:
    before = {kind: encoder.matrix(0, kind).get_parameter("weight").clone() for kind in "QKV"}
    part = encoder.matrix(0, "K")
    assert isinstance(part, nn.Linear)
    part.weight = nn.Parameter(2 * part.weight.detach())
    encoder.store(0, "K", part)
    for kind, weight in before.items():
        factor = 2 if kind == "K" else 1
        assert torch.equal(encoder.matrix(0, kind).get_parameter("weight"), factor * weight)


def test_dense_parts_remain_one_layer_and_its_weights_are_set_in_place(encoder: Encoder) -> None:
    fused = fused_of(encoder)
    parts = {kind: part_of(fused, encoder._columns(fused, kind)) for kind in "QKV"}
    zeros = nn.Linear(encoder.hidden_size, encoder.hidden_size, bias=fused.bias is not None)
    nn.init.zeros_(zeros.weight)
    encoder.set_matrix(0, "V", zeros)
    assert fused_of(encoder) is fused
    assert not encoder.matrix(0, "V").get_parameter("weight").any()
    torch.testing.assert_close(encoder.matrix(0, "K").weight, parts["K"].weight)


def test_narrow_parts_are_one_layer_that_keeps_mode_and_frozen_weights(encoder: Encoder) -> None:
    fused, width = fused_of(encoder).train(), encoder.head_size
    fused.requires_grad_(False)
    narrow = {}
    for kind in "QKV":
        old = encoder.matrix(0, kind)
        assert isinstance(old, nn.Linear)
        narrow[kind] = part_of(old, slice(width, 3 * width))
    encoder.set_matrices(0, narrow)
    joined, hidden = fused_of(encoder), torch.randn(4, encoder.hidden_size)
    assert type(joined) is nn.Linear
    assert (joined.training, joined.weight.requires_grad) == (True, False)
    assert joined.out_features == 6 * width
    for kind, part in narrow.items():
        torch.testing.assert_close(joined(hidden)[:, encoder._columns(joined, kind)], part(hidden))


def test_a_part_of_blocks_splits_the_layer_and_dense_parts_join_it_again(encoder: Encoder) -> None:
    fused, size, hidden = fused_of(encoder), encoder.hidden_size, torch.randn(4, encoder.hidden_size)
    dense = {kind: part_of(fused, encoder._columns(fused, kind)) for kind in "QKV"}
    expected, bias = fused(hidden), fused.bias is not None
    grouped = GroupedLinear(size, size, 2, bias=bias)
    encoder.set_matrix(0, "K", grouped)
    split = encoder.layers[0].get_submodule(encoder.family.paths["Q"])
    assert isinstance(split, FusedLinear)
    assert encoder.matrix(0, "K") is grouped
    torch.testing.assert_close(encoder.matrix(0, "V")(hidden), dense["V"](hidden))
    encoder.set_matrix(0, "K", dense["K"])
    assert type(fused_of(encoder)) is nn.Linear
    torch.testing.assert_close(fused_of(encoder)(hidden), expected)


def test_layers_of_other_libraries_are_not_plain() -> None:
    linear = nn.Linear(4, 4)
    assert is_plain(linear)
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    assert not is_plain(linear)
    assert not is_plain(type("Other", (nn.Linear,), {})(4, 4))


@pytest.mark.parametrize("block", [None, 2])
def test_joined_parts_that_are_split_again_are_equal(block: int | None) -> None:
    parts = {kind: nn.Linear(6, 4, bias=True) for kind in ("W1", "W3")}
    joined = join_parts(nn.Identity(), parts, block)
    assert isinstance(joined, nn.Linear)
    for number, part in enumerate(parts.values()):
        again = part_of(joined, part_columns(8, number, 2, block, CPU))
        assert torch.equal(again.weight, part.weight)
        assert torch.equal(again.bias, part.bias)


@pytest.mark.parametrize("model_type", FUSED)
def test_parts_of_a_model_that_is_pruned_or_loaded_in_inference_mode_can_be_trained(model_type: str) -> None:
    model, loaded = tiny_model(model_type), tiny_model(model_type)
    follow_state_dict(loaded)
    encoder = find_encoder(model)
    half = ((tuple(range(24)),), (tuple(range(24)),))
    plans = {(0, "Q"): half, (1, "V"): half}
    sizes = {kind: encoder.matrix_size(kind, encoder.inner_size(sublayer_of(kind))) for kind in encoder.matrices}
    matrices = (
        MatrixPlan(layer, kind, *sizes[kind], *plans.get((layer, kind), (None, None)))
        for layer in range(encoder.num_layers)
        for kind in encoder.matrices
    )
    with torch.inference_mode():
        apply_plan(model, PruningPlan(model_type, tuple(matrices)))
        loaded.load_state_dict(model.state_dict())
    for each in (model, loaded):
        assert not any(parameter.is_inference() for parameter in each.parameters())
        each(**tiny_batches(1)[0]).loss.backward()
