"""Grouping by the error that remains after compensation (``permutation="compensated"``; not in the paper).

Given the rows of every block, the error of an output assigned to a block is a Schur complement (see
:mod:`pgb_lightning.prediction.elimination`) and does not depend on the other outputs, so the joint assignment of all
columns is optimal. The errors of rows depend on each other; rows are therefore grouped by the saliency of single
weights according to the optimal brain surgeon (Hassibi et al. 1993). W1 and W2 group the neurons alike where possible.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.grouping.assignment import assign
from pgb_lightning.grouping.permutation import Blocks, group
from pgb_lightning.prediction.elimination import STABLE_RIDGE, add_damping
from pgb_lightning.prediction.quadratic import QuadraticModel


def obs_saliency(covariance: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
    """Return twice the saliency of the optimal brain surgeon, a w² / [H⁻¹]ᵢᵢ, of each weight, (M, N).

    The saliency is the increase of the loss if the weight is removed and the other weights of its output are refitted.

    Args:
        covariance: H, the damped covariance of the inputs, (M, M).
        weight: W, (M, N).
        outputs: a, the diagonal of A: twice the loss increase per squared error of each output, (N,).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(add_damping(covariance, STABLE_RIDGE)))
    return outputs * weight.square() / inverse.diagonal().unsqueeze(1)


def compensated_groups(
    covariance: Tensor, cross: Tensor, outputs: Tensor, saliency: Tensor, num_groups: int, num_permutations: int
) -> Blocks:
    """Arrange a matrix into G blocks such that the error after compensation is small.

    Args:
        covariance: H, the damped covariance of the inputs, (M, M).
        cross: H W, (M, N).
        outputs: The diagonal of A, (N,).
        saliency: The result of :func:`obs_saliency`, (M, N).
        num_groups: G, a common divisor of M and N.
        num_permutations: N_perm, the number of sorts in the greedy grouping of the rows.

    Returns:
        The blocks.
    """
    rows = group(saliency, num_groups, "balanced", num_permutations).rows
    return assign_columns(covariance, cross, outputs, rows)


def assign_columns(covariance: Tensor, cross: Tensor, outputs: Tensor, rows: Tensor) -> Blocks:
    """Assign N/G outputs to each block such that the loss increase after compensation is minimal for the given rows.

    Args:
        covariance: H, the damped covariance of the inputs, (M, M).
        cross: H W, (M, N).
        outputs: The diagonal of A, (N,).
        rows: Inputs of each block, (G, m).

    Returns:
        The blocks.
    """
    factors = torch.linalg.cholesky(covariance[rows.unsqueeze(2), rows.unsqueeze(1)])
    explained = torch.linalg.solve_triangular(factors, cross[rows], upper=False).square().sum(1) * outputs
    return Blocks(rows, assign(explained.T.contiguous()))


def group_matrices(
    encoder: Encoder, statistics: Calibration, config: PruningConfig, numbers: Mapping[tuple[int, str], int]
) -> dict[tuple[int, str], Blocks]:
    """Compute the blocks of all matrices with more than one group, for ``permutation="compensated"``.

    Args:
        encoder: The dense encoder.
        statistics: Its calibration statistics, with moments.
        config: The pruning settings.
        numbers: The group number of each matrix by (layer index, matrix kind).

    Returns:
        The blocks of each matrix with more than one group.
    """
    blocks: dict[tuple[int, str], Blocks] = {}
    for (layer, kind), number in numbers.items():
        if number < 2:
            continue
        matrix = QuadraticModel.from_calibration(encoder, statistics, config, layer, kind)
        covariance, outputs = matrix.covariance, matrix.output_curvature()
        cross = covariance @ matrix.weight
        first, *_, last = SUBLAYERS["ffn"]
        opening = blocks.get((layer, first)) if kind == last else None
        if opening is not None and len(opening.columns) == number:
            blocks[layer, kind] = assign_columns(covariance, cross, outputs, opening.columns)
        else:
            saliency = obs_saliency(covariance, matrix.weight, outputs)
            blocks[layer, kind] = compensated_groups(
                covariance, cross, outputs, saliency, number, config.num_permutations
            )
    return blocks
