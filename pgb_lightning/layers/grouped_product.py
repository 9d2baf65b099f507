"""The steps of a grouped layer, forward and backward, without a transposed copy.

Sizes are read as ``x.shape[0]``, not ``len(x)``, so that tracers keep the number of tokens dynamic.

A batched product needs its operands group by group, (G, T, m), while activations are stored token by token. Here, each
group reads its columns of the input without a copy and writes directly to its columns of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pgb_lightning._compat import is_transformed


def grouped_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each group of columns by its block.

    Args:
        x: (T, G·m); group g has the columns from g·m to (g + 1)·m.
        weight: (G, m, n), of the same data type.
        bias: (G·n), likewise.

    Returns:
        (T, G·n). Differentiable any number of times.

    Example:
        >>> grouped_product(torch.ones(1, 4), torch.ones(2, 2, 3)).tolist()
        [[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]]
    """
    if is_traced():
        return (_multiply_separately if x.device.type == "cpu" else _multiply_batched)(x, weight, bias)
    needs_grad = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and needs_grad:
        product: Tensor = _GroupedProduct.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _multiply(x, weight, bias)


def gather_columns(x: Tensor, index: Tensor) -> Tensor:
    """Return columns of a matrix.

    Args:
        x: (T, M).
        index: Distinct columns, (K), int64.

    Returns:
        (T, K). Differentiable any number of times.

    Example:
        >>> gather_columns(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0])).tolist()
        [[3.0, 1.0]]
    """
    if is_traced():
        return x.index_select(1, index)
    if torch.is_grad_enabled() and x.requires_grad:
        gathered: Tensor = _GatherColumns.apply(x, index)  # type: ignore[no-untyped-call]
        return gathered
    return _gather(x, index)


def scatter_columns(x: Tensor, index: Tensor, size: int, base: Tensor | None = None) -> Tensor:
    """Write columns to their positions in a wider matrix.

    Args:
        x: (T, K).
        index: Distinct positions of the columns, (K), int64.
        size: N, the columns of the result.
        base: (N), the values of the columns that are not written; zero by default.

    Returns:
        (T, N). Differentiable any number of times.

    Example:
        >>> scatter_columns(torch.tensor([[3.0, 1.0]]), torch.tensor([2, 0]), 3).tolist()
        [[1.0, 0.0, 3.0]]
    """
    if len(index) == size:
        rows = x.new_empty(x.shape[0], size)
    else:
        rows = (x.new_zeros(size) if base is None else base).expand(x.shape[0], -1).clone()
    if is_traced():
        return rows.index_copy(1, index, x)
    if x.device.type == "cpu":
        return rows.scatter_(1, index.expand(x.shape[0], -1), x)  # goes row by row, index_copy column by column
    return rows.index_copy_(1, index, x)


def is_in_order(index: Tensor, size: int) -> bool:
    """Return whether an index on a CPU is 0, 1, ..., ``size`` - 1.

    On other devices and under a tracer, it returns ``False``, since reading the index would wait for the device or
    break the graph.

    Args:
        index: (K), int64.
        size: The number of columns.
    """
    if index.device.type != "cpu" or len(index) != size or is_traced():
        return False
    try:
        return torch.equal(index, torch.arange(size, device=index.device))
    except RuntimeError:  # a tensor without values, as under FakeTensorMode
        return False


def is_traced() -> bool:
    """Return whether a compiler, exporter or transform of ``torch.func`` needs plain operations."""
    is_tracing = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    return torch.compiler.is_compiling() or is_tracing or is_transformed()


class _GroupedProduct(torch.autograd.Function):
    """The product with its gradients, which are grouped products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            grouped_product(gradient, weight.transpose(1, 2)) if needs_x else None,
            _weight_gradient(x, gradient, len(weight)) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


class _GatherColumns(torch.autograd.Function):
    """A gather whose backward pass is a scatter, which is faster than torch's scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = x.shape[1]
        return _gather(x, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return scatter_columns(gradient, index, ctx.size), None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    groups, _, size = weight.shape
    y = x.new_empty(len(x), groups * size)
    if x.device.type == "cpu":
        # The BLAS library multiplies strided matrices at full speed, so no operand is copied.
        biases = [None] * groups if bias is None else bias.view(groups, size)
        for own, block, start, out in zip(x.chunk(groups, 1), weight, biases, y.chunk(groups, 1), strict=True):
            if start is None:
                torch.mm(own, block, out=out)
            else:
                torch.addmm(start, own, block, out=out)
        return y
    blocks, out = _by_group(x, groups), _by_group(y, groups)
    if bias is None:
        torch.bmm(blocks, weight, out=out)
    else:
        torch.baddbmm(bias.view(groups, 1, -1), blocks, weight, out=out)
    return y


def _multiply_separately(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply with one product per group, which compilers for CPUs write to the output without a copy."""
    biases = [None] * len(weight) if bias is None else bias.view(len(weight), -1)
    parts = zip(x.chunk(len(weight), 1), weight, biases, strict=True)
    return torch.cat(
        [own @ block if start is None else torch.addmm(start, own, block) for own, block, start in parts], 1
    )


def _multiply_batched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply with one batched product, whose copies compilers for GPUs fuse."""
    blocks = _by_group(x, len(weight))
    if bias is None:
        product = torch.bmm(blocks, weight)
    else:
        product = torch.baddbmm(bias.view(len(weight), 1, -1), blocks, weight)
    return product.transpose(0, 1).reshape(x.shape[0], weight.shape[0] * weight.shape[2])


def _weight_gradient(x: Tensor, gradient: Tensor, groups: int) -> Tensor:
    """Return the gradient of the blocks, (G, m, n)."""
    if x.device.type == "cpu" and not (torch.is_grad_enabled() and (x.requires_grad or gradient.requires_grad)):
        out = x.new_empty(groups, x.shape[1] // groups, gradient.shape[1] // groups)
        for own, above, block in zip(x.chunk(groups, 1), gradient.chunk(groups, 1), out, strict=True):
            torch.mm(own.T, above, out=block)
        return out
    return torch.bmm(_by_group(x, groups).transpose(1, 2), _by_group(gradient, groups))


def _gather(x: Tensor, index: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return x.gather(1, index.expand(x.shape[0], -1))  # goes row by row, index_select column by column
    return x.index_select(1, index)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """View (T, G·m) as (G, T, m)."""
    return x.view(x.shape[0], groups, x.shape[1] // groups).transpose(0, 1)
