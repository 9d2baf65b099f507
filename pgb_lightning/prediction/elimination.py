"""What a matrix loses, after compensation, by losing inputs or by being cut into blocks: closed forms, no data.

Let H be the covariance of a matrix's inputs and W its weights (M, N). If the outputs in a block may read only the
inputs R, the best weights for output j are the least-squares fit of x wⱼ on x_R, and what remains of it is

    `eⱼ = wⱼᵀ (H - H_:R H_RR⁻¹ H_R:) wⱼ`,

a Schur complement. Means do not count: the bias absorbs them. To second order an error e at a matrix's outputs raises
the loss by half of E[(gᵀe)²], g being the loss's gradient there. Errors of different tokens are taken as independent,
as are errors and gradients; then the rise is ½ tr(A E), with A the sum over a sample's tokens of E[g gᵀ] and E the
error's covariance. Where every output reads the same inputs, the least-squares fit is best for any A, so all of A
counts; for groups only its diagonal does.

Everywhere H stands for H + λI, which is what compensation's ridge solves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgb_lightning.calibration.damping import factorize_damped


@dataclass(frozen=True)
class Elimination:
    """An order in which to take units (neurons or heads) away.

    Args:
        order: The units, the first to go first, (U,).
        losses: Rise of the loss once the first ``counts[i]`` units are gone.
        counts: Units gone, ascending, from 0 to U.
        weights: The weights of the units that are left then, refitted, (M', N) each, rows ascending; kept only for
            the counts that were asked for.
    """

    order: Tensor
    losses: list[float]
    counts: list[int]
    weights: dict[int, Tensor]

    def kept_units(self, count: int) -> Tensor:
        """Return the units left when ``count`` are gone, ascending."""
        return self.order[count:].sort().values


#: From this ridge on, H + λI is positive definite in spite of rounding in single precision.
STABLE_RIDGE = 1e-4


def add_damping(covariance: Tensor, ridge: float) -> Tensor:
    """Return H + λI, with λ raised where needed to make it positive definite.

    Args:
        covariance: H, (M, M).
        ridge: λ as a fraction of the mean diagonal entry of H.
    """
    damping = (max(ridge, 1e-9) * covariance.diagonal().mean()).clamp_min(1e-30)
    if ridge < STABLE_RIDGE:  # otherwise the factorization cannot fail, and would only take time
        _, damping = factorize_damped(covariance, damping)
    return covariance + damping * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def eliminate(
    covariance: Tensor, weight: Tensor, outputs: Tensor, unit: int = 1, step: int = 1, keep: tuple[int, ...] = ()
) -> Elimination:
    """Take away units of inputs, the least harmful first, refitting the rest each time (optimal brain surgeon).

    With V = H⁻¹ over the inputs that are left and W their refitted weights, taking the inputs B away raises the
    error's covariance by `W_Bᵀ V_BB⁻¹ W_B`; then `W_: -= V_:B V_BB⁻¹ W_B`, and V likewise. The sum of the rises is
    exactly the Schur complement of what is left.

    Args:
        covariance: H, damped, (M, M).
        weight: W, (M, N).
        outputs: A, the gradients' second moment at the outputs, (N, N).
        unit: Neighbouring inputs that go together: 1 for neurons, the head's width for heads.
        step: Units that go at once, chosen by their single rises.
        keep: Counts of units gone at which the refitted weights are kept.

    Returns:
        The order and the losses, at every multiple of ``step`` and at the end.
    """
    # In coordinates where A is ½I a rise is a plain sum of squares.
    values, vectors = torch.linalg.eigh(outputs.double() / 2)
    root = vectors * values.clamp_min(0).sqrt()
    outer = weight.double() @ root
    weight = weight.double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance.double()))
    total = len(weight) // unit
    units = torch.arange(total, device=weight.device)  # at each place; those that went leave zeros in theirs
    left = units  # places of the units that are left
    gone: list[Tensor] = []
    losses, counts, weights = [0.0], [0], {}
    while len(left):
        if total - len(left) in keep:
            weights[total - len(left)] = weight[unit_indices(left, unit)]
        blocks = inverse.view(len(units), unit, len(units), unit).diagonal(dim1=0, dim2=2).permute(2, 0, 1)[left]
        parts = outer.view(len(units), unit, -1)[left]
        rises = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
        order = torch.argsort(rises, stable=True)
        lost, left = left[order[:step]], left[order[step:]].sort().values
        b = unit_indices(lost, unit)
        pulled, taken, taken_outer = inverse[b], weight[b], outer[b]
        own = torch.linalg.cholesky(pulled[:, b])
        gain = torch.cholesky_solve(pulled, own)
        losses.append(losses[-1] + float((taken_outer * torch.cholesky_solve(taken_outer, own)).sum()))
        for matrix, part in ((inverse, pulled), (weight, taken), (outer, taken_outer)):
            matrix.addmm_(gain.T, part, alpha=-1)
        gone.append(units[lost])
        counts.append(total - len(left))
        if 2 * len(left) < len(units):  # most are zeros: close the ranks
            r = unit_indices(left, unit)
            inverse, weight, outer = inverse[r][:, r], weight[r], outer[r]
            units, left = units[left], torch.arange(len(left), device=left.device)
    return Elimination(torch.cat(gone), losses, counts, weights)


def block_errors(covariance: Tensor, weight: Tensor, carried: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the error eⱼ that compensation leaves in each output of a matrix cut into blocks.

    Args:
        covariance: H, damped, (M, M).
        weight: W, (M, N).
        carried: H W, (M, N), which is the same for all ways of cutting.
        rows: Inputs of each block, (G, m).
        columns: Outputs of each block, (G, n).

    Returns:
        The errors, (N,); those of outputs outside all blocks are their whole variance.
    """
    errors = (weight * carried).sum(0)
    power = covariance[rows.unsqueeze(2), rows.unsqueeze(1)]
    cross = carried[rows.unsqueeze(2), columns.unsqueeze(1)]
    fitted = torch.linalg.solve_triangular(torch.linalg.cholesky(power), cross, upper=False)
    errors[columns] -= fitted.square().sum(1)
    return errors.clamp_min(0)


def unit_indices(units: Tensor, unit: int) -> Tensor:
    """Return the inputs of some units (heads), each ``unit`` wide."""
    return (units.unsqueeze(1) * unit + torch.arange(unit, device=units.device)).flatten()
