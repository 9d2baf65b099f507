"""Masks on single weights: masked weights stay zero in training, but save neither time nor memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.layers.matrix import as_matrix


def mask_matrices(
    encoder: Encoder, importances: Mapping[tuple[int, str], Tensor], kept_fractions: Mapping[tuple[int, str], float]
) -> None:
    """Keep a given fraction of each matrix's weights, the most important ones, and mask the others.

    Args:
        encoder: A dense encoder; its layers get masks.
        importances: Importance of each matrix's weights, of shape (M, N), by (layer index, matrix kind).
        kept_fractions: Fraction of its weights that each matrix keeps.
    """
    for linear, matrices in encoder.hook_points():
        placed = torch.zeros_like(linear.weight)
        for key, columns in matrices.items():
            flat = importances[key].T.flatten()
            mask = torch.zeros_like(flat)
            mask[flat.topk(round(kept_fractions[key] * flat.numel())).indices] = 1
            placed[slice(None) if columns is None else columns] = mask.view_as(importances[key].T).to(placed)
        prune.custom_from_mask(linear, "weight", placed)  # type: ignore[no-untyped-call]


def kept_weights(encoder: Encoder) -> int:
    """Count the weights of the encoder's matrices that are neither removed nor masked."""
    count = 0
    for layer in range(encoder.num_layers):
        for kinds in encoder.family.linears.values():
            module = encoder.find_matrix(layer, kinds[0])
            mask = getattr(module, "weight_mask", None)
            if isinstance(mask, Tensor):
                count += int(mask.sum())  # of all parts of a fused linear layer
                continue
            for kind in kinds:
                found = encoder.find_matrix(layer, kind)
                count += 0 if found is None else as_matrix(found).kept_weights().numel()
    return count


@torch.no_grad()  # so that a copy of the masked model can be made at once
def mask_zeros(encoder: Encoder) -> None:
    """Mask the weights that are exactly zero in the encoder's linear layers, so that training leaves them zero."""
    for linear, _ in encoder.hook_points():
        zeros = linear.weight == 0
        if bool(zeros.any()):
            prune.custom_from_mask(linear, "weight", (~zeros).to(linear.weight))  # type: ignore[no-untyped-call]


def make_permanent(module: nn.Module) -> None:
    """Write the zeros of masked layers into their weights, and remove the masks."""
    for child in module.modules():
        if hasattr(child, "weight_mask"):
            prune.remove(child, "weight")  # type: ignore[no-untyped-call]
