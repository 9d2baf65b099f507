"""The two steps of a grouped layer, forward and backward, without a transposed copy.

A batched product would want its operands group by group, (G, T, m), while activations lie token by token. Here each
group multiplies its own columns where they are, and writes to where they belong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def grouped_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each group of columns by its block.

    Args:
        x: (T, G·m); group g has the columns from g·m to (g + 1)·m.
        weight: (G, m, n), of the same type.
        bias: (G·n), likewise.

    Returns:
        (T, G·n). Differentiable any number of times.

    Example:
        >>> grouped_product(torch.ones(1, 4), torch.ones(2, 2, 3)).tolist()
        [[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]]
    """
    if _is_traced():
        return (_apart if x.device.type == "cpu" else _batched)(x, weight, bias)
    learned = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and learned:
        product: Tensor = _GroupedProduct.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _multiply(x, weight, bias)


def take_columns(x: Tensor, index: Tensor) -> Tensor:
    """Take columns of a matrix, none of them twice.

    Args:
        x: (T, M).
        index: The columns, (K), int64.

    Returns:
        (T, K). Differentiable any number of times.

    Example:
        >>> take_columns(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0])).tolist()
        [[3.0, 1.0]]
    """
    if _is_traced():
        return x.index_select(1, index)
    if torch.is_grad_enabled() and x.requires_grad:
        taken: Tensor = _TakeColumns.apply(x, index)  # type: ignore[no-untyped-call]
        return taken
    return _take(x, index)


def put_columns(x: Tensor, index: Tensor, base: Tensor) -> Tensor:
    """Put columns at their places, the others being those of a row.

    Args:
        x: (T, K).
        index: Where they go, (K), int64, none of them twice.
        base: (N), what the other places hold.

    Returns:
        (T, N).
    """
    return base.expand(len(x), -1).index_copy(1, index, x)


def inverse_order(index: Tensor) -> Tensor:
    """Return the permutation that undoes another, (N), int64."""
    inverse = torch.empty_like(index)
    inverse[index] = torch.arange(len(index), device=index.device)
    return inverse


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
            _outer(x, gradient, len(weight)) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


class _TakeColumns(torch.autograd.Function):
    """Columns taken; those of the gradient go back to where they came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = x.shape[1]
        return _take(x, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        if len(index) == ctx.size:
            return take_columns(gradient, inverse_order(index)), None
        return put_columns(gradient, index, gradient.new_zeros(ctx.size)), None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    groups, _, size = weight.shape
    y = x.new_empty(len(x), groups * size)
    if x.device.type == "cpu":
        # The library multiplies matrices whose rows lie apart as fast as others, so no operand is copied.
        biases = [None] * groups if bias is None else bias.view(groups, size)
        for own, block, begin, out in zip(x.chunk(groups, 1), weight, biases, y.chunk(groups, 1), strict=True):
            if begin is None:
                torch.mm(own, block, out=out)
            else:
                torch.addmm(begin, own, block, out=out)
        return y
    blocks, out = _by_group(x, groups), _by_group(y, groups)
    if bias is None:
        torch.bmm(blocks, weight, out=out)
    else:
        torch.baddbmm(bias.view(groups, 1, -1), blocks, weight, out=out)
    return y


def _apart(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Say the same in operations that compilers for CPUs let write where they belong, without copies around them."""
    biases = [None] * len(weight) if bias is None else bias.view(len(weight), -1)
    parts = zip(x.chunk(len(weight), 1), weight, biases, strict=True)
    return torch.cat(
        [own @ block if begin is None else torch.addmm(begin, own, block) for own, block, begin in parts], 1
    )


def _batched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Say the same in one product, as GPUs like it, whose copies compilers know how to fuse."""
    blocks = _by_group(x, len(weight))
    if bias is None:
        product = torch.bmm(blocks, weight)
    else:
        product = torch.baddbmm(bias.view(len(weight), 1, -1), blocks, weight)
    return product.transpose(0, 1).reshape(len(x), weight.shape[0] * weight.shape[2])


def _outer(x: Tensor, gradient: Tensor, groups: int) -> Tensor:
    """Return the gradient of the blocks, (G, m, n)."""
    if x.device.type == "cpu" and not (torch.is_grad_enabled() and (x.requires_grad or gradient.requires_grad)):
        out = x.new_empty(groups, x.shape[1] // groups, gradient.shape[1] // groups)
        for own, above, block in zip(x.chunk(groups, 1), gradient.chunk(groups, 1), out, strict=True):
            torch.mm(own.T, above, out=block)
        return out
    return torch.bmm(_by_group(x, groups).transpose(1, 2), _by_group(gradient, groups))


def _take(x: Tensor, index: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return x.gather(1, index.expand(len(x), -1))  # goes row by row, index_select column by column
    return x.index_select(1, index)


def _is_traced() -> bool:
    """Tell whether a compiler or exporter looks on, which wants plain operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Look at (T, G·m) as (G, T, m)."""
    return x.view(len(x), groups, x.shape[1] // groups).transpose(0, 1)
