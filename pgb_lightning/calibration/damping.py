"""Add a multiple of the identity to a Gram or covariance matrix until its Cholesky factorization succeeds."""

from __future__ import annotations

import torch
from torch import Tensor


def factorize_damped(gram: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Factorize H + λI, with λ raised tenfold until the matrix is numerically positive definite.

    Args:
        gram: H, symmetric positive semidefinite up to rounding, (..., M, M).
        damping: λ to start from, one for each matrix, (...).

    Returns:
        The lower Cholesky factor of H + λI in float64, (..., M, M), and the λ that was used, (...). If H contains NaN
        or infinity, the factor is invalid and λ is unchanged.

    Example:
        >>> factor, damping = factorize_damped(torch.zeros(2, 2), torch.tensor(0.25))
        >>> factor.tolist(), damping.item()
        ([[0.5, 0.0], [0.0, 0.5]], 0.25)
    """
    while True:
        damped = gram.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(damping[..., None])
        factor, failed = torch.linalg.cholesky_ex(damped.double())
        if not failed.any() or not torch.isfinite(damped).all():
            return factor, damping
        damping = damping * torch.where(failed > 0, 10.0, 1.0)  # rounding made the matrix indefinite
