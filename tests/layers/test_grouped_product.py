"""The grouped product and its gradients, compared with plain operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgb_lightning.layers.grouped_product import (
    _multiply_batched,
    _multiply_separately,
    gather_columns,
    grouped_product,
    is_in_order,
    scatter_columns,
)
from pgb_lightning.layers.linear import GroupedLinear


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    parts = [part @ block for part, block in zip(x.chunk(len(weight), 1), weight, strict=True)]
    return torch.cat(parts, 1) + (0 if bias is None else bias)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 7)),
    with_bias=st.booleans(),
)
def test_values_and_gradients(groups: int, sizes: tuple[int, int, int], with_bias: bool) -> None:
    m, n, tokens = sizes
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((tokens, groups * m), (groups, m, n), (groups * n,))
    )
    used = (x, weight, bias) if with_bias else (x, weight)
    given_bias = bias if with_bias else None
    expected = reference(x, weight, given_bias)
    above = torch.randn_like(expected)
    for product in (grouped_product, _multiply_separately, _multiply_batched):
        output = product(x, weight, given_bias)
        torch.testing.assert_close(output, expected)
        for own, other in zip(
            torch.autograd.grad(output, used, above),
            torch.autograd.grad(expected, used, above, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(own, other)
    with torch.no_grad():
        torch.testing.assert_close(grouped_product(x, weight, given_bias), expected)


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(grouped_product, inputs)
    for index in (torch.tensor([2, 0, 3, 1]), torch.tensor([3, 1])):
        assert torch.autograd.gradgradcheck(lambda x, index=index: gather_columns(x, index), [x])
        assert torch.autograd.gradgradcheck(lambda x, index=index: scatter_columns(x[:, : len(index)], index, 4), [x])


def test_the_bias_alone_can_require_a_gradient() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(2, 2, 3), torch.randn(6, requires_grad=True)
    grouped_product(x, weight, bias).sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [3.0] * 6


def test_only_tensors_that_require_a_gradient_get_one() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(2, 2, 3, requires_grad=True), torch.randn(6)
    grouped_product(x, weight, bias).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    assert bias.grad is None


def test_scatter_undoes_gather() -> None:
    x, order = torch.randn(3, 4), torch.tensor([2, 0, 3, 1])
    assert torch.equal(scatter_columns(gather_columns(x, order), order, 4), x)


def test_columns_that_are_not_written_are_the_base() -> None:
    x, base = torch.randn(3, 2), torch.arange(5.0, requires_grad=True)
    output = scatter_columns(x, torch.tensor([3, 0]), 5, base)
    expected = torch.stack([x[:, 1], torch.full((3,), 1.0), torch.full((3,), 2.0), x[:, 0], torch.full((3,), 4.0)], 1)
    assert torch.equal(output, expected)
    output.sum().backward()
    assert base.grad is not None
    assert base.grad.tolist() == [0.0, 3.0, 3.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [([0, 1, 2], 3, True), ([0, 1], 3, False), ([1, 0, 2], 3, False), ([0, 1, 1], 3, False)],
)
def test_an_index_in_order_is_recognized(index: list[int], size: int, expected: bool) -> None:
    assert is_in_order(torch.tensor(index), size) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 8), torch.randn(2, 4, 3), torch.randn(6)
    output = grouped_product(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), reference(x, weight, bias), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("coverage", ["all", "some"])
def test_compilers_see_one_graph_without_breaks(coverage: str) -> None:
    size = 8 if coverage == "all" else 3
    layer = GroupedLinear(16, 16, 2, size, size)
    layer.input_index.copy_(torch.randperm(16)[: 2 * size].view(2, size))
    layer.output_index.copy_(torch.randperm(16)[: 2 * size].view(2, size))
    x = torch.randn(2, 5, 16)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()  # the limit of compiled versions may have been reached in other tests
    first = torch.compile(layer, backend=backend, fullgraph=True)(x)  # before any eager call
    torch.testing.assert_close(first, layer(x))
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) >= 1
