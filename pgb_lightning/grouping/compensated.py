"""Blocks by what compensation leaves: columns exactly, rows by what each is worth, neurons alike in W1 and W2.

Given the rows of the blocks, what an output loses in each of them after compensation is a Schur complement
(:mod:`pgb_lightning.prediction.elimination`), independent of the other outputs, so assigning all columns at once is
exact. Rows are not independent; they are grouped by the cost of removing a single weight when the others are refitted
(optimal brain surgeon).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.grouping.permutation import Blocks, assign, group
from pgb_lightning.prediction.elimination import STABLE_RIDGE, add_damping
from pgb_lightning.prediction.quadratic import QuadraticModel


def obs_saliency(covariance: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
    """Return what taking each weight away costs when the others of its output are refitted, twice, (M, N).

    Args:
        covariance: H of the inputs, damped, (M, M).
        weight: W, (M, N).
        outputs: What a squared error in each output costs, (N,).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(add_damping(covariance, STABLE_RIDGE)))
    return outputs * weight.square() / inverse.diagonal().unsqueeze(1)


def compensated_groups(
    covariance: Tensor, carried: Tensor, outputs: Tensor, worth: Tensor, num_groups: int, num_permutations: int
) -> Blocks:
    """Gather weights into G blocks so that little is lost after compensation.

    Args:
        covariance: H of the inputs, damped, (M, M).
        carried: H W, (M, N).
        outputs: What a squared error in each output costs, (N,).
        worth: What :func:`obs_saliency` gives, (M, N).
        num_groups: G, a common divisor of M and N.
        num_permutations: N_perm, the sorts that rows start from.

    Returns:
        The groups.
    """
    rows = group(worth, num_groups, "balanced", num_permutations).rows
    return assign_columns(covariance, carried, outputs, rows)


def assign_columns(covariance: Tensor, carried: Tensor, outputs: Tensor, rows: Tensor) -> Blocks:
    """Give each block the outputs that its inputs explain best, all blocks equally many.

    Args:
        covariance: H, damped, (M, M).
        carried: H W, (M, N).
        outputs: What a squared error in each output costs, (N,).
        rows: Inputs of each block, (G, m).

    Returns:
        The groups; no other columns lose less with these rows.
    """
    factors = torch.linalg.cholesky(covariance[rows.unsqueeze(2), rows.unsqueeze(1)])
    explained = torch.linalg.solve_triangular(factors, carried[rows], upper=False).square().sum(1) * outputs
    return Blocks(rows, assign(explained.T.contiguous()))


def group_matrices(
    encoder: Encoder, statistics: Calibration, config: PruningConfig, numbers: Mapping[tuple[int, str], int]
) -> dict[tuple[int, str], Blocks]:
    """Group all matrices that are cut into more than one block, as ``permutation="compensated"`` wants it.

    Args:
        encoder: A dense encoder.
        statistics: What calibration found, moments included.
        config: The settings.
        numbers: G of each matrix.

    Returns:
        The groups of those with more than one.
    """
    found: dict[tuple[int, str], Blocks] = {}
    for (layer, kind), number in numbers.items():
        if number < 2:
            continue
        matrix = QuadraticModel.from_calibration(encoder, statistics, config, layer, kind)
        covariance, outputs = matrix.covariance, matrix.output_curvature()
        carried = covariance @ matrix.weight
        opening = found.get((layer, "W1")) if kind == "W2" else None
        if opening is not None and len(opening.columns) == number:
            found[layer, kind] = assign_columns(covariance, carried, outputs, opening.columns)
        else:
            worth, sorts = obs_saliency(covariance, matrix.weight, outputs), config.num_permutations
            found[layer, kind] = compensated_groups(covariance, carried, outputs, worth, number, sorts)
    return found
