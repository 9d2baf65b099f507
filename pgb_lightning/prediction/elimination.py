"""Closed-form prediction of the loss increase that remains after compensation.

Let H be the covariance of a matrix's inputs x and W (M, N) its weights. If output j may read only the inputs R, its
best weights are the least-squares fit of xᵀwⱼ on x_R, and the remaining squared error is::

    eⱼ = wⱼᵀ (H - H_:R H_RR⁻¹ H_R:) wⱼ,

with a Schur complement of H. Means do not contribute, since the bias absorbs them.

To second order, an error e at the matrix's outputs increases the loss by ½ E[(gᵀe)²], where g is the gradient of the
loss with respect to the outputs. If the errors of different tokens are independent of each other and of the gradients,
this is ½ tr(A E), where A is the expected sum of g gᵀ over a sample's tokens and E is the covariance of e. If all
outputs read the same inputs, the least-squares fit is optimal for every A, and all of A is used. With groups, only the
diagonal of A is used.

H always stands for H + λI, which corresponds to the ridge penalty of compensation (Eq. 4).

The elimination of units follows the optimal brain surgeon (Hassibi et al. 1993), applied to groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pgb_lightning.calibration.damping import factorize_damped

#: The smallest ridge for which H + λI is positive definite in spite of rounding in single precision.
STABLE_RIDGE = 1e-4


@dataclass(frozen=True)
class Elimination:
    """The order in which :func:`eliminate` removed units (neurons or heads), with the predicted losses.

    Args:
        order: Indices of the units, the first removed first, (U,).
        losses: Predicted increase of the loss after removing the first ``counts[i]`` units.
        counts: Numbers of removed units, ascending, from 0 to U.
        weights: Refitted weights of the remaining units, (M', N) with rows ascending, by number of removed units; only
            for the requested numbers.
    """

    order: Tensor
    losses: list[float]
    counts: list[int]
    weights: dict[int, Tensor]

    def kept_units(self, count: int) -> Tensor:
        """Return the units that remain after removing ``count`` of them, ascending."""
        return self.order[count:].sort().values


def add_damping(covariance: Tensor, ridge: float) -> Tensor:
    """Return H + λI, with λ raised where needed to make it positive definite.

    Args:
        covariance: H, (M, M).
        ridge: λ as a fraction of the mean diagonal entry of H.
    """
    damping = (max(ridge, 1e-9) * covariance.diagonal().mean()).clamp_min(1e-30)
    if ridge < STABLE_RIDGE:  # with a larger ridge, the factorization cannot fail
        _, damping = factorize_damped(covariance, damping)
    return covariance + damping * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def eliminate(
    covariance: Tensor, weight: Tensor, outputs: Tensor, unit: int = 1, step: int = 1, keep: tuple[int, ...] = ()
) -> Elimination:
    """Remove units of inputs one after another, the least harmful first, and refit the remaining weights each time.

    With V = H⁻¹ over the remaining inputs and W their refitted weights, removing the inputs B increases the error's
    covariance by ``W_Bᵀ V_BB⁻¹ W_B``. The updates are ``W -= V_:B V_BB⁻¹ W_B`` and ``V -= V_:B V_BB⁻¹ V_B:``. The sum
    of the increases equals the Schur complement for the remaining inputs.

    Args:
        covariance: H, damped, (M, M).
        weight: W, (M, N).
        outputs: A, the second moment of the gradients with respect to the outputs, (N, N).
        unit: Number of consecutive inputs that form a unit: 1 for neurons, the head size for heads.
        step: Number of units removed at a time, chosen by their individual increases.
        keep: Numbers of removed units at which the refitted weights are kept.

    Returns:
        The order and the losses, at every multiple of ``step`` and after removing all units.
    """
    # Multiply W by (A/2)^½, so that the increase of the loss is a sum of squares.
    values, vectors = torch.linalg.eigh(outputs.double() / 2)
    root = vectors * values.clamp_min(0).sqrt()
    outer = weight.double() @ root
    weight = weight.double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance.double()))
    total = len(weight) // unit
    units = torch.arange(total, device=weight.device)  # the unit at each position; removed units leave zeros there
    left = units  # positions of the remaining units
    removed: list[Tensor] = []
    lost_more: list[Tensor] = []  # read at the end, since reading waits for the GPU
    counts, weights = [0], {}
    while len(left):
        if total - len(left) in keep:
            weights[total - len(left)] = weight[unit_indices(left, unit)]
        increases = _increases(inverse, outer, left, unit)
        order = torch.argsort(increases, stable=True)
        lost, left = left[order[:step]], left[order[step:]].sort().values
        b = unit_indices(lost, unit)
        inverse_b, weight_b, outer_b = inverse[b], weight[b], outer[b]
        factor = torch.linalg.cholesky(inverse_b[:, b])
        gain = torch.cholesky_solve(inverse_b, factor)
        lost_more.append((outer_b * torch.cholesky_solve(outer_b, factor)).sum())
        for matrix, rows in ((inverse, inverse_b), (weight, weight_b), (outer, outer_b)):
            # The refitted weights are not needed after the last number for which they are kept.
            if matrix is not weight or total - len(left) <= max(keep, default=0):
                matrix.addmm_(gain.T, rows, alpha=-1)
        removed.append(units[lost])
        counts.append(total - len(left))
        if 2 * len(left) < len(units):  # most rows are zero: remove them to save time
            r = unit_indices(left, unit)
            inverse, weight, outer = inverse[r][:, r], weight[r], outer[r]
            units, left = units[left], torch.arange(len(left), device=left.device)
    losses = list(accumulate(torch.stack(lost_more).tolist(), initial=0.0))
    return Elimination(torch.cat(removed), losses, counts, weights)


def _increases(inverse: Tensor, outer: Tensor, left: Tensor, unit: int) -> Tensor:
    """Return ``tr(W_Bᵀ V_BB⁻¹ W_B)`` of each remaining unit B, (U',).

    Args:
        inverse: V, (M, M).
        outer: W, multiplied by the root of the second moment of the outputs' gradients, (M, N).
        left: Positions of the remaining units, (U',).
        unit: Number of consecutive inputs that form a unit.
    """
    if unit == 1:
        return (outer.square().sum(1) / inverse.diagonal())[left]
    units = len(inverse) // unit
    blocks = inverse.view(units, unit, units, unit).diagonal(dim1=0, dim2=2).permute(2, 0, 1)[left]
    parts = outer.view(units, unit, -1)[left]
    increases: Tensor = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
    return increases


def block_errors(covariance: Tensor, weight: Tensor, cross: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute the error eⱼ that remains in each output after cutting a matrix into blocks and compensating.

    Args:
        covariance: H, damped, (M, M).
        weight: W, (M, N).
        cross: H W, the cross-covariance of inputs and outputs, (M, N). It does not depend on the blocks.
        rows: Inputs of each block, (G, m).
        columns: Outputs of each block, (G, n).

    Returns:
        The errors, (N,). For an output in no block, the error is its full variance.
    """
    errors = (weight * cross).sum(0)
    block_covariance = covariance[rows.unsqueeze(2), rows.unsqueeze(1)]
    block_cross = cross[rows.unsqueeze(2), columns.unsqueeze(1)]
    fitted = torch.linalg.solve_triangular(torch.linalg.cholesky(block_covariance), block_cross, upper=False)
    errors[columns] -= fitted.square().sum(1)
    return errors.clamp_min(0)


def block_loss(
    covariance: Tensor, weight: Tensor, cross: Tensor, outputs: Tensor, rows: Tensor, columns: Tensor
) -> float:
    """Predict the increase of the loss after cutting a matrix into blocks and compensating.

    Args:
        covariance: H, damped, (M, M).
        weight: W, (M, N).
        cross: H W, (M, N).
        outputs: The diagonal of A: twice the loss increase per squared error of each output, (N,).
        rows: Inputs of each block, (G, m).
        columns: Outputs of each block, (G, n).
    """
    return float((block_errors(covariance, weight, cross, rows, columns) * outputs).sum() / 2)


def unit_indices(units: Tensor, unit: int) -> Tensor:
    """Return the indices of the inputs that belong to the given units of ``unit`` consecutive inputs each."""
    return (units.unsqueeze(1) * unit + torch.arange(unit, device=units.device)).flatten()
