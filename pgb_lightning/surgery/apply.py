"""Apply a plan to an encoder: cut the blocks out of its matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.build import install
from pgb_lightning.surgery.checks import check_plan
from pgb_lightning.surgery.finish import finish
from pgb_lightning.surgery.folding import Hidden, fold
from pgb_lightning.surgery.new_layers import blank_layer, select_features
from pgb_lightning.surgery.structure import SublayerStructure


def apply_plan(model: nn.Module | Encoder, plan: PruningPlan, encoder: str | None = None) -> None:
    """Apply a plan to an encoder, in place.

    Each block is stored with the positions of its inputs and outputs, from which layers re-permute (Section 3.3). The
    values of the kept weights are not changed; compensation refits them.

    Args:
        model: A module that holds an encoder, or the :class:`~pgb_lightning.encoders.base.Encoder` itself. The encoder
            is dense, or pruned as it was when the plan was made.
        plan: The plan.
        encoder: Attribute path of the encoder; required if ``model`` holds several.

    Raises:
        ValueError: If there is no such encoder, it cannot be pruned, or the plan was made for another shape of encoder
            (the first mismatch is named). The model is unchanged then.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        >>> half = ((0, 1, 2, 3), (4, 5, 6, 7))
        >>> blocks = [MatrixPlan(0, kind, 8, 8, half, half) for kind in ("Q", "K", "V", "O", "W1", "W2")]
        >>> model = BertModel(tiny)
        >>> apply_plan(model, PruningPlan("bert", tuple(blocks)))
        >>> model.encoder.layer[0].output.dense.weight.shape
        torch.Size([2, 4, 4])
    """
    if isinstance(model, Encoder) and encoder is not None:
        raise ValueError(f"encoder={encoder!r} has no effect if model is an Encoder. Leave it out.")
    found = model if isinstance(model, Encoder) else find_encoder(model, encoder)
    check_plan(found, plan)
    for layer in range(plan.num_layers):
        prune_layer(found, plan, layer)
    finish(found)


def prune_layer(encoder: Encoder, plan: PruningPlan, layer: int) -> dict[str, Hidden]:
    """Apply a plan to one layer, in place, and return the inner features that are kept of each matrix."""
    features: dict[str, Hidden] = {}
    for sublayer, kinds in encoder.sublayers.items():
        features |= prune_sublayer(encoder, layer, sublayer, [plan.matrix(layer, kind) for kind in kinds])
    return features


def prune_sublayer(
    encoder: Encoder, layer: int, sublayer: Sublayer, matrices: Sequence[MatrixPlan]
) -> dict[str, Hidden]:
    """Apply the plans of one sublayer's matrices, in place, with their permutations folded.

    Args:
        encoder: The encoder, in which this sublayer has plain linear layers, or was dropped before.
        layer: Layer index.
        sublayer: The sublayer.
        matrices: The plan of each of its matrices.

    Returns:
        For each matrix the kept neurons (or features of heads) in their new order; ``None`` if all are kept in order.
    """
    if encoder.is_dropped(layer, sublayer):
        return dict.fromkeys(encoder.sublayers[sublayer])
    folded = fold(matrices, sublayer, encoder.attention_unit)
    closing = SUBLAYERS[sublayer][-1]
    modules = {}
    for kind, matrix in folded.matrices.items():
        linear = encoder.matrix(layer, kind)
        assert isinstance(linear, nn.Linear), f"layer {layer} {kind} is {type(linear).__name__}"
        selected = select_features(linear, folded.features(kind), of_inputs=kind == closing)
        modules[kind] = prune_linear(selected, matrix, encoder.family.makes_bias(kind))
    is_dropped = SublayerStructure.of_folded(encoder, sublayer, folded).is_dropped
    install(encoder, layer, sublayer, modules, is_dropped, folded.hidden)
    return {kind: folded.features(kind) for kind in folded.matrices}


@torch.no_grad()
def prune_linear(linear: nn.Linear, matrix: MatrixPlan, make_bias: bool = False) -> nn.Module:
    """Cut the blocks of a plan out of a dense layer.

    Args:
        linear: The dense layer; its ``weight`` is Wᵀ, (N, M).
        matrix: The plan.
        make_bias: Whether a layer that is removed gets a bias of zeros if it has none.

    Returns:
        The layer itself if the plan keeps it dense, else a :class:`GroupedLinear` or
        :class:`~pgb_lightning.layers.linear.ConstantLinear`.
    """
    if matrix.block_shape is None:
        return linear
    pruned = blank_layer(linear, (linear.in_features, linear.out_features), matrix.block_shape, make_bias)
    if isinstance(pruned, GroupedLinear):
        rows = torch.tensor(matrix.input_index, device=linear.weight.device)
        columns = torch.tensor(matrix.output_index, device=linear.weight.device)
        pruned.input_index.copy_(rows)
        pruned.output_index.copy_(columns)
        pruned.weight.copy_(linear.weight.T[rows.unsqueeze(2), columns.unsqueeze(1)])
    bias = as_matrix(pruned).bias
    if linear.bias is not None and bias is not None:
        bias.copy_(linear.bias)
    return pruned
