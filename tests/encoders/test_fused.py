"""Fused linear layers: their parts are matrices of their own, and what is left of them takes no more memory."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from pgb_lightning.encoders.fused import join_parts, part_columns, part_of
from pgb_lightning.layers.fused import FusedLinear
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear

KINDS = ("Q", "K", "V")


def parts_of(fused: nn.Linear, block: int | None) -> dict[str, nn.Linear]:
    columns = [part_columns(fused.out_features, n, len(KINDS), block, fused.weight.device) for n in range(len(KINDS))]
    return dict(zip(KINDS, (part_of(fused, each) for each in columns), strict=True))


def split(output: Tensor, block: int | None) -> dict[str, Tensor]:
    """Return the outputs of the parts of a fused layer, as models take them apart."""
    if block is None:
        return dict(zip(KINDS, output.chunk(3, dim=-1), strict=True))
    by_head = output.unflatten(-1, (-1, 3 * block)).chunk(3, dim=-1)
    return dict(zip(KINDS, (part.flatten(-2) for part in by_head), strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [None, 4])
def test_parts_are_those_that_models_take_apart(block: int | None, bias: bool) -> None:
    fused = nn.Linear(8, 24, bias=bias)
    x = torch.randn(2, 5, 8)
    parts = parts_of(fused, block)
    for kind, expected in split(fused(x), block).items():
        torch.testing.assert_close(parts[kind](x), expected)
    joined = join_parts(nn.Linear(8, 24, bias=bias), copy.deepcopy(parts), block)
    torch.testing.assert_close(joined(x), fused(x))


@pytest.mark.parametrize("block", [None, 4])
def test_a_layer_with_pruned_parts_joins_their_outputs(block: int | None) -> None:
    fused = nn.Linear(8, 24)
    x = torch.randn(2, 5, 8)
    parts = parts_of(fused, block)
    pruned = {"Q": parts["Q"], "K": ConstantLinear(8, 8), "V": GroupedLinear(8, 8, num_groups=2)}
    found = split(join_parts(fused, pruned, block)(x), block)
    for kind, part in pruned.items():
        torch.testing.assert_close(found[kind], part(x))


def test_a_dense_part_does_not_keep_the_memory_of_the_others() -> None:
    fused = nn.Linear(64, 192, bias=False)
    fused.weight.requires_grad_(False)
    parts = parts_of(fused, None)
    left = join_parts(fused, {**parts, "V": ConstantLinear(64, 64, bias=False)}, None)
    assert isinstance(left, FusedLinear)
    file = io.BytesIO()
    torch.save(left.state_dict(), file)
    assert len(file.getvalue()) < 1.2 * 2 * 64 * 64 * 4
    assert torch.equal(left.get_parameter("Q.weight"), fused.weight[:64])
    assert not left.get_parameter("Q.weight").requires_grad
