"""The closed-form solution of Eq. 4 (weight compensation)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgb_lightning.calibration.damping import factorize_damped


@dataclass(frozen=True)
class LeastSquares:
    """The ridge regression problem of Eq. 4 for the blocks of one matrix.

    All outputs of a block share its inputs, so one Cholesky factorization per block serves all of them.

    Args:
        gram: Centered X̂ᵀX̂ of each block's inputs in the pruned model, (G, m, m).
        cross: Centered X̂ᵀY of each block's inputs and its target outputs (the dense model's), (G, m, n).
        power: Uncentered sum of squares of a block's inputs, averaged over its inputs, (G,). The rounding errors of
            ``cross`` are relative to it.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor

    def solve(self, start: Tensor, ridge: float) -> Tensor:
        """Solve for the weights of every block: Ŵ = (X̂ᵀX̂ + λI)⁻¹ (X̂ᵀY + λ W).

        They minimize the squared error of the block's outputs plus λ times the squared distance from ``start``.
        Therefore, the error is never larger than that of ``start``.

        Args:
            start: W, the weights before compensation, (G, m, n).
            ridge: λ as a fraction of the mean diagonal entry of ``gram``. λ is at least the rounding error of single
                precision, and is raised for blocks that rounding makes indefinite.

        Returns:
            Ŵ in float64, (G, m, n).
        """
        gram, cross, start = self.gram.double(), self.cross.double(), start.double()
        # If inputs hardly vary, such as the outputs of uniform attention to a single sample, the entries of the Gram
        # matrix are squared rounding errors. Dividing the rounding errors of ``cross`` by them would give large weights
        # without meaning.
        rounding = torch.finfo(torch.float32).eps * self.power
        damping = torch.maximum(ridge * gram.diagonal(dim1=1, dim2=2).mean(1), rounding).clamp_min(1e-30)
        factor, damping = factorize_damped(gram, damping)
        return torch.cholesky_solve(cross + damping.view(-1, 1, 1) * start, factor)

    def explained(self, weight: Tensor) -> float:
        """Return the explained sum of squares: the targets' total sum of squares minus the squared error of ``weight``.

        Args:
            weight: Weights of every block, (G, m, n).
        """
        return float((weight * (2 * self.cross - torch.bmm(self.gram, weight))).sum())
