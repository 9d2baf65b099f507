"""FusedLinear: the outputs of its parts, joined, whatever the parts are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from pgb_lightning.layers.fused import FusedLinear
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.layers.token_chunks import TokenChunks

SIZE = 12
BIAS = [False, True]


def scattered(bias: bool) -> GroupedLinear:
    """Return a layer whose blocks are neither in order nor complete."""
    layer = GroupedLinear(SIZE, SIZE, 2, block_in=4, block_out=5, bias=bias)
    generator = torch.Generator().manual_seed(0)
    for index in (layer.input_index, layer.output_index):
        index.copy_(torch.randperm(SIZE, generator=generator)[: index.numel()].view_as(index))
    return layer


def parts(bias: bool) -> dict[str, nn.Module]:
    """Return one layer of every kind."""
    made = {
        "dense": nn.Linear(SIZE, SIZE, bias=bias),
        "grouped": GroupedLinear(SIZE, SIZE, 3, bias=bias),
        "scattered": scattered(bias),
        "constant": ConstantLinear(SIZE, SIZE, bias=bias),
    }
    if bias:
        nn.init.normal_(made["constant"].get_parameter("bias"))
    return made


def reference(layers: dict[str, nn.Module], block: int | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the dense layer that computes the same."""
    weights = [as_matrix(layer).dense_weight().detach() for layer in layers.values()]
    biases = [layer.bias for layer in layers.values() if isinstance(layer.bias, Tensor)]
    if block is None:
        return torch.cat(weights), torch.cat(biases) if biases else None
    weight = torch.stack([each.unflatten(0, (-1, block)) for each in weights], 1).flatten(0, 2)
    bias = torch.stack([each.view(-1, block) for each in biases], 1).flatten() if biases else None
    return weight, bias


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("shape", [(2, 5), (7,), (0, 3), ()])
@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("bias", BIAS)
def test_outputs_are_those_of_one_dense_layer(
    bias: bool, block: int | None, shape: tuple[int, ...], with_gradients: bool
) -> None:
    layers = parts(bias)
    fused, x = FusedLinear(layers, block), torch.randn(*shape, SIZE)
    assert (fused.in_features, fused.out_features) == (SIZE, 4 * SIZE)
    with torch.set_grad_enabled(with_gradients):
        torch.testing.assert_close(fused(x), nn.functional.linear(x, *reference(layers, block)))


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("bias", BIAS)
def test_gradients_reach_every_part_and_the_input(bias: bool, block: int | None) -> None:
    fused, x = FusedLinear(parts(bias), block), torch.randn(4, SIZE, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    weight, _ = reference(dict(fused.named_children()), block)
    fused(x).square().sum().backward()
    output = nn.functional.linear(other, *reference(dict(fused.named_children()), block))
    output.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert all(parameter.grad is not None for parameter in fused.parameters())
    first = weight.shape[0] // len(list(fused.children())) if block is None else block
    expected = 2 * output.detach()[:, :first].T @ other.detach()
    found = fused.get_submodule("dense").get_parameter("weight").grad
    assert found is not None
    torch.testing.assert_close(found[:first], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precisions_and_autocast(dtype: torch.dtype) -> None:
    fused, x = FusedLinear(parts(True)), torch.randn(4, SIZE)
    expected = fused(x).detach()
    half = copy.deepcopy(fused).to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    for with_gradients in (False, True):
        with torch.set_grad_enabled(with_gradients), torch.autocast("cpu", dtype):
            cast = fused(x)
        assert cast.dtype == dtype
        torch.testing.assert_close(cast.float(), expected, rtol=0.05, atol=0.05)


def test_copies_pickles_compiled_and_exported_layers_are_equal() -> None:
    torch.compiler.reset()
    fused, x = FusedLinear(parts(False)), torch.randn(3, SIZE)
    with torch.no_grad():
        expected = fused(x)
        exported = torch.export.export(fused, (x,), strict=False).module()
        compiled = torch.compile(fused, backend="eager", fullgraph=True)
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), exported, compiled):
            torch.testing.assert_close(other(x), expected)


class Gated(nn.Module):
    """A gated feed-forward network as in ModernBERT."""

    def __init__(self) -> None:
        super().__init__()
        halves = {kind: GroupedLinear(SIZE, 24, 2, bias=False) for kind in ("W1", "W3")}
        self.Wi = FusedLinear(halves)
        self.Wo = GroupedLinear(24, SIZE, 2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner, gate = self.Wi(hidden).chunk(2, dim=-1)
        output: Tensor = self.Wo(nn.functional.gelu(inner) * gate)
        return output


@torch.no_grad()
def test_gated_networks_run_on_chunks_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    network, hidden = Gated().eval(), torch.randn(3, 10, SIZE)
    expected, sizes = network(hidden), list[int]()
    run = Gated.forward

    def forward(self: Gated, hidden: Tensor) -> Tensor:
        sizes.append(hidden.numel() // SIZE)
        return run(self, hidden)

    monkeypatch.setattr(Gated, "forward", forward)
    network.forward = TokenChunks(network, "forward", "Wi", chunk_bytes=8 * 48 * 4)  # type: ignore[method-assign]
    torch.testing.assert_close(network(hidden), expected)
    assert sizes == [8, 8, 8, 6]  # both openings count
    torch.testing.assert_close(copy.deepcopy(network)(hidden), expected)
