"""The operations of a pruned layer at run time, counted: a test of its speed without a clock."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.tiny import classifier
from test_folding import PLANS, plan_of
from torch.profiler import ProfilerActivity, profile

from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")
MOVES = (
    "aten::gather",
    "aten::index_select",
    "aten::index",
    "aten::index_copy",
    "aten::index_put",
    "aten::scatter_",
    "aten::cat",
)


def operations(name: str | None) -> Counter[str]:
    """Count the operations of one layer in inference under a plan; ``None`` leaves it dense."""
    model = classifier(layers=1)
    encoder = find_encoder(model)
    if name is not None:
        apply_plan(encoder, plan_of(**PLANS[name]))
    hidden, layer = torch.randn(2, 5, 24), encoder.layers[0]

    def run() -> None:
        encoder.run(layer, "ffn", encoder.run(layer, "attention", hidden))

    with torch.inference_mode():
        run()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            run()
    return Counter(event.name for event in recorded.events() or () if event.name.startswith("aten::"))


def total(counted: Counter[str], names: tuple[str, ...]) -> int:
    return sum(counted[name] for name in names)


@pytest.mark.parametrize(
    ("name", "products", "moves"),
    [
        (None, 6, 0),
        # Each group is one product. W1 gathers its inputs, W2 scatters its outputs, and the bias is reordered once.
        ("equal groups", 4 + 3 + 3, 2 + 1),
        ("W1's groups within W2's", 4 + 4 + 2, 2 + 1),
        ("W2's groups within W1's", 4 + 2 + 4, 2 + 1),
        # Between independent groups one gather remains.
        ("independent groups", 4 + 3 + 4, 3 + 1),
        ("groups of attention", 4 * 3 + 2, 4 * 2 + 4),
        # Fewer neurons or heads only make the matrices smaller.
        ("fewer neurons", 6, 0),
        ("one head", 6, 0),
    ],
)
def test_products_and_moves_of_a_layer(name: str | None, products: int, moves: int) -> None:
    counted = operations(name)
    assert total(counted, PRODUCTS) == products
    assert total(counted, MOVES) == moves


@pytest.mark.parametrize("name", ["equal groups", "independent groups", "groups of attention"])
def test_only_biases_and_indices_are_copied(name: str) -> None:
    """A product copies the bias into its outputs first, also in the dense layer; each index is converted to int64."""
    products = sum(len(index[0] or ()) for index in PLANS[name].values())
    indices = 2 * len(PLANS[name])
    copies = operations(name)["aten::copy_"] - operations(None)["aten::copy_"]
    assert copies == products - len(PLANS[name]) + indices
    assert operations(name)["aten::contiguous"] == operations(None)["aten::contiguous"]


def test_fewer_neurons_and_heads_copy_nothing() -> None:
    names = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::add", "aten::native_layer_norm")
    for name in ("fewer neurons", "one head"):
        assert total(operations(name), names) == total(operations(None), names)
