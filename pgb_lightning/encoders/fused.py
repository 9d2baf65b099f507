"""Fused linear layers: several matrices that read the same input, stored as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pgb_lightning.layers.fused import FusedLinear

#: The outputs of a fused linear layer that belong to one of its parts.
Columns = slice | Tensor


def part_columns(size: int, number: int, count: int, block: int | None, device: torch.device) -> Columns:
    """Return the outputs of a part.

    Args:
        size: Outputs of the fused layer.
        number: Index of the part.
        count: Number of parts, which are of equal width.
        block: Consecutive outputs of a part if the parts are interleaved, such as the features of a head; else
            ``None``.
        device: Device of an index.

    Example:
        >>> part_columns(6, number=1, count=3, block=None, device=torch.device("cpu"))
        slice(2, 4, None)
        >>> part_columns(8, number=1, count=2, block=2, device=torch.device("cpu")).tolist()
        [2, 3, 6, 7]
    """
    if block is None:
        width = size // count
        return slice(number * width, (number + 1) * width)
    return torch.arange(size, device=device).view(-1, count, block)[:, number].flatten()


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a linear layer whose weight is its own parameter, which may be sharded.

    Weights of other classes, such as quantized ones, cannot be divided into parts.
    """
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    is_tensor = type(weight) is nn.Parameter or hasattr(weight, "device_mesh")
    return type(module) is nn.Linear and is_tensor and not parametrize.is_parametrized(module)


@torch.inference_mode(False)  # A model that is loaded in inference mode can be trained.
@torch.no_grad()
def part_of(fused: nn.Linear, columns: Columns) -> nn.Linear:
    """Return a linear layer with some outputs of another one.

    Its weights are a view of the other layer's, unless the outputs are not consecutive.
    """
    weight = fused.weight.detach()[columns]
    part = nn.Linear(fused.in_features, len(weight), bias=fused.bias is not None, device="meta")
    part.weight = nn.Parameter(weight, requires_grad=fused.weight.requires_grad)
    if fused.bias is not None:
        part.bias = nn.Parameter(fused.bias.detach()[columns], requires_grad=fused.bias.requires_grad)
    return part.train(fused.training)


@torch.inference_mode(False)
@torch.no_grad()
def join_parts(old: nn.Module, parts: Mapping[str, nn.Module], block: int | None) -> nn.Module:
    """Return one layer for all parts: a linear layer (one matrix product) if all are dense, else a FusedLinear.

    Args:
        old: The layer that held the parts. If only the values of its weights change, they are set in place.
        parts: The layers of the parts, by matrix kind.
        block: Consecutive outputs of a part if the parts are interleaved, else ``None``.
    """
    linears = [part for part in parts.values() if isinstance(part, nn.Linear)]
    if len(linears) < len(parts):
        for parameter in (p for part in linears for p in part.parameters()):
            if parameter.untyped_storage().nbytes() > parameter.nbytes:
                # A view would keep all parts of the old layer in memory and in checkpoints.
                parameter.data = parameter.data.clone()
        fused = FusedLinear(parts, block)
        return fused.train(old.training)
    first, size = linears[0], sum(part.out_features for part in linears)
    if is_plain(old) and (old.in_features, old.out_features) == (first.in_features, size):
        joined = old
    else:
        device, dtype = first.weight.device, first.weight.dtype
        joined = nn.Linear(first.in_features, size, bias=first.bias is not None, device=device, dtype=dtype)
        joined.train(old.training)
        joined.weight.requires_grad_(all(part.weight.requires_grad for part in linears))
        if joined.bias is not None:
            joined.bias.requires_grad_(all(part.bias.requires_grad for part in linears))
    for number, part in enumerate(linears):
        columns = part_columns(size, number, len(linears), block, joined.weight.device)
        joined.weight.data[columns] = part.weight.data
        if joined.bias is not None:
            joined.bias.data[columns] = part.bias.data
    return joined
