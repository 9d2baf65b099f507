"""Pruned layers and models under the transforms of ``torch.func``, compared with dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.pruned_models import Situation
from helpers.tiny import batches
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from pgb_lightning import ConstantLinear, GroupedLinear

Parameters = dict[str, Tensor]


def grouped(in_order: bool = False, seed: int = 0) -> GroupedLinear:
    torch.manual_seed(seed)
    layer = GroupedLinear(6, 8, 2, 3 if in_order else 2, 4 if in_order else 3, dtype=torch.float64)
    if not in_order:
        layer.input_index.copy_(torch.randperm(6)[:4].view(2, 2))
        layer.output_index.copy_(torch.randperm(8)[:6].view(2, 3))
    return layer


class Twin(nn.Module):
    """The dense layer of a grouped one, computed from the grouped parameters."""

    def __init__(self, layer: GroupedLinear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("input_index", layer.input_index.clone())
        self.register_buffer("output_index", layer.output_index.clone())

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.input_index.long(), self.output_index.long()
        dense = self.weight.new_zeros(8, 6).index_put((columns.unsqueeze(1), rows.unsqueeze(2)), self.weight)
        return x @ dense.T + self.bias


def loss(layer: nn.Module, parameters: Parameters, x: Tensor) -> Tensor:
    return functional_call(layer, parameters, (x,)).sin().sum()


def parameters(layer: nn.Module) -> Parameters:
    return {name: value.detach() for name, value in layer.named_parameters()}


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda layer, x: grad(lambda p: loss(layer, p, x))(parameters(layer)),
    "per-sample grad": lambda layer, x: vmap(grad(lambda p, row: loss(layer, p, row)), (None, 0))(parameters(layer), x),
    "vmap over rows": lambda layer, x: vmap(layer)(x),
    "jacrev": lambda layer, x: jacrev(layer)(x),
    "jacfwd": lambda layer, x: jacfwd(layer)(x),
    "hessian": lambda layer, x: hessian(lambda y: layer(y).sin().sum())(x),
    "jvp": lambda layer, x: jvp(lambda p: loss(layer, p, x), (parameters(layer),), (parameters(layer),)),
}


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_equal_those_of_the_dense_layer(name: str, in_order: bool) -> None:
    layer = grouped(in_order)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(TRANSFORMS[name](layer, x), TRANSFORMS[name](Twin(layer), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("in_order", [True, False])
def test_an_ensemble_of_layers_with_other_indices(in_order: bool) -> None:
    layers = [grouped(in_order, seed) for seed in range(3)]
    stacked = stack_module_state(layers)  # type: ignore[arg-type]
    x = torch.randn(5, 6, dtype=torch.float64)
    found = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(*stacked)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]))


def test_a_constant_layer_under_vmap() -> None:
    layer = ConstantLinear(3, 2)
    assert torch.equal(vmap(layer)(torch.randn(4, 3)), layer(torch.randn(4, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_an_ensemble_and_gradients_of_a_pruned_model(seed: int) -> None:
    case = Situation("bert", seed)
    batch = {name: value for name, value in batches(1, 4)[0].items() if name != "labels"}

    def squares(weights: Parameters, model: nn.Module) -> Tensor:
        return functional_call(model, weights, (), batch).logits.square().sum()

    found, expected = (
        grad(lambda p, m=model: squares(p, m))(parameters(model)) for model in (case.pruned, case.expected)
    )
    for name in ("bert.embeddings.word_embeddings.weight", "classifier.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)

    members = [copy.deepcopy(case.pruned) for _ in range(2)]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.mul_(1.25)
    run = vmap(lambda p, b: functional_call(members[0], (p, b), (), batch).logits)
    with torch.no_grad():
        together = run(*stack_module_state(members))
        torch.testing.assert_close(together, torch.stack([model(**batch).logits for model in members]))
