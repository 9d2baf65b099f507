"""The common interface of the layers that hold a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import REMOVED, BlockShape, as_matrix

LAYERS = {
    "dense": lambda: nn.Linear(12, 8),
    "grouped": lambda: GroupedLinear(12, 8, 2, 5, 3),
    "removed": lambda: ConstantLinear(12, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_dense_weight_computes_what_the_layer_computes(name: str) -> None:
    module = LAYERS[name]()
    layer, x = as_matrix(module), torch.randn(3, 12)
    assert (layer.in_features, layer.out_features) == (12, 8)
    torch.testing.assert_close(x @ layer.dense_weight().T + layer.bias, module(x))


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [("dense", None, (1, 12, 8)), ("grouped", BlockShape(2, 5, 3), (2, 5, 3)), ("removed", REMOVED, (0, 0, 0))],
)
def test_the_kept_weights_lie_at_the_index(name: str, shape: BlockShape | None, size: tuple[int, ...]) -> None:
    layer = as_matrix(LAYERS[name]())
    assert layer.block_shape == shape
    kept, (rows, columns) = layer.kept_weights(), layer.index()
    assert kept.shape == size
    assert torch.equal(layer.dense_weight().T[rows.unsqueeze(2), columns.unsqueeze(1)], kept)


@pytest.mark.parametrize("name", ["dense", "grouped"])
def test_the_kept_weights_are_a_view_of_the_parameter(name: str) -> None:
    module = LAYERS[name]()
    with torch.no_grad():
        as_matrix(module).kept_weights().fill_(2.0)
    assert torch.equal(module.weight, torch.full_like(module.weight, 2.0))


def test_another_module_is_refused() -> None:
    with pytest.raises(TypeError, match="Dropout"):
        as_matrix(nn.Dropout())
