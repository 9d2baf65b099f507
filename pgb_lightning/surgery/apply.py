"""Surgery: put grouped layers where a plan says, and undo them in a dense twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pgb_lightning.encoders.base import SUBLAYERS, Encoder, Sublayer
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.token_chunks import TokenChunks
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.checks import check_plan
from pgb_lightning.surgery.folding import Hidden, fold


def apply_plan(encoder: Encoder, plan: PruningPlan) -> None:
    """Carry out a plan on a dense encoder, in place.

    Each block is cut out of the matrix and knows the places its inputs and outputs had, which is all that
    re-permutation needs (Section 3.3). The kept weights are the dense model's; compensation refits them.

    Args:
        encoder: A dense encoder; its layers change.
        plan: The plan.

    Raises:
        ValueError: The plan was made for another shape of encoder (the first mismatch is named), or the
            encoder is grouped already. Nothing has changed then.
    """
    check_plan(encoder, plan)
    for layer in range(plan.num_layers):
        prune_layer(encoder, plan, layer)


def prune_layer(encoder: Encoder, plan: PruningPlan, layer: int) -> dict[Sublayer, Hidden]:
    """Carry out a plan on one layer, in place; return what is left inside of each sublayer."""
    return {
        sublayer: prune_sublayer(encoder, layer, sublayer, [plan.matrix(layer, kind) for kind in kinds])
        for sublayer, kinds in SUBLAYERS.items()
    }


def prune_sublayer(encoder: Encoder, layer: int, sublayer: Sublayer, matrices: Sequence[MatrixPlan]) -> Hidden:
    """Carry out the plans of one sublayer's matrices, in place, with their permutations folded.

    Returns:
        Which of the dense sublayer's neurons, or features of heads, are left, in their new order.
    """
    folded = fold(matrices, sublayer, encoder.attention_unit)
    closing = SUBLAYERS[sublayer][-1]
    for kind, matrix in folded.matrices.items():
        module = encoder.matrix(layer, kind)
        assert isinstance(module, nn.Linear), f"layer {layer} {kind} is {type(module).__name__}"
        put(encoder, layer, kind, prune_linear(select(module, folded.hidden, kind == closing), matrix))
    if all(matrix.num_groups == 0 for matrix in matrices):
        drop_sublayer(encoder, layer, sublayer)
    if sublayer == "ffn":
        feed_in_chunks(encoder, layer)
    return folded.hidden


@torch.no_grad()
def select(linear: nn.Linear, features: Hidden, of_inputs: bool) -> nn.Linear:
    """Make a layer of some inputs or outputs of another, in the order given; ``None`` gives the layer itself."""
    if features is None:
        return linear
    index = torch.tensor(features, device=linear.weight.device)
    weight = linear.weight.index_select(int(of_inputs), index)
    bias = linear.bias if of_inputs or linear.bias is None else linear.bias[index]
    outputs, inputs = weight.shape
    selected = nn.Linear(inputs, outputs, bias is not None, device=weight.device, dtype=weight.dtype)
    selected.weight.copy_(weight)
    if bias is not None:
        selected.bias.copy_(bias)
    like(linear, selected)
    return selected


@torch.no_grad()
def prune_linear(linear: nn.Linear, matrix: MatrixPlan) -> nn.Module:
    """Cut the blocks of a plan out of a dense layer.

    Args:
        linear: The dense layer; its ``weight`` is Wᵀ, (N, M).
        matrix: What becomes of it.

    Returns:
        The layer itself if it is kept whole, else a :class:`GroupedLinear` or :class:`ConstantLinear`.
    """
    if matrix.input_index is None or matrix.output_index is None:
        return linear
    placed: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    pruned: GroupedLinear | ConstantLinear
    if matrix.num_groups == 0:
        pruned = ConstantLinear(linear.in_features, linear.out_features, **placed)
    else:
        rows = torch.tensor(matrix.input_index, device=linear.weight.device)
        columns = torch.tensor(matrix.output_index, device=linear.weight.device)
        pruned = GroupedLinear(
            linear.in_features,
            linear.out_features,
            *(matrix.num_groups, rows.shape[1], columns.shape[1]),
            bias=linear.bias is not None,
            **placed,
        )
        pruned.input_index.copy_(rows)
        pruned.output_index.copy_(columns)
        pruned.weight.copy_(linear.weight.T[rows.unsqueeze(2), columns.unsqueeze(1)])
    if linear.bias is not None and pruned.bias is not None:
        pruned.bias.copy_(linear.bias)
    return like(linear, pruned)


def blank_layer(
    old: nn.Module, size: tuple[int, int], blocks: tuple[int, ...] | None, bias: bool = True
) -> nn.Linear | GroupedLinear | ConstantLinear:
    """Make a layer of some structure, with weights still to be loaded, in the place of another.

    Args:
        old: The layer whose place it takes; gives the device and type, the mode, and what is trained.
        size: M and N.
        blocks: G, m and n; ``()`` if the matrix is pruned whole, ``None`` if it is kept whole.
        bias: Whether there is a bias.

    Raises:
        ValueError: The blocks do not fit the matrix.
    """
    first = next(old.parameters())
    placed: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
    blank: nn.Linear | GroupedLinear | ConstantLinear
    if blocks is None:
        blank = nn.Linear(*size, bias=bias, **placed)
    elif not blocks:
        blank = ConstantLinear(*size, **placed)
    else:
        groups, block_in, block_out = blocks
        blank = GroupedLinear(*size, groups, block_in, block_out, bias=bias, **placed)
    like(old, blank)
    return blank


def drop_sublayer(encoder: Encoder, layer: int, sublayer: Sublayer) -> None:
    """Take out all of a sublayer but the constant that it adds, which is its closing matrix's bias."""
    architecture = encoder.family
    core = architecture.cores[sublayer]
    closing = architecture.paths[SUBLAYERS[sublayer][-1]]
    inside = closing.removeprefix(f"{core}.") if closing.startswith(f"{core}.") else None
    constant = encoder.layers[layer].get_submodule(closing) if inside else None
    dropped = DroppedCore(inside, constant, returns_tuple=sublayer == "attention")
    set_submodule(encoder.layers[layer], core, dropped)


def put(encoder: Encoder, layer: int, kind: str, module: nn.Module) -> None:
    """Put a module at the place of one matrix."""
    set_submodule(encoder.layers[layer], encoder.family.paths[kind], module)
    if isinstance(module, GroupedLinear):
        module.settle()


def set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at an attribute path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def like(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give a layer the mode of the one whose place it takes, and let it train only what trained before."""
    frozen = {name for name, parameter in old.named_parameters() if not parameter.requires_grad}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return new.train(old.training)


def feed_in_chunks(encoder: Encoder, layer: int) -> None:
    """Let a layer's feed-forward sublayer take its tokens in chunks, if it can and was not dropped."""
    if encoder.family.tokenwise is None:
        return
    path, method = encoder.family.tokenwise
    owner = encoder.layers[layer].get_submodule(path)
    vars(owner).pop(method, None)
    if encoder.find_matrix(layer, "W1") is not None:
        opening = encoder.family.paths["W1"].removeprefix(f"{path}.")
        setattr(owner, method, TokenChunks(owner, method, opening))
