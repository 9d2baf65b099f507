"""Damping: λ is raised only where rounding makes a matrix indefinite."""

from __future__ import annotations

import torch

from pgb_lightning.calibration.damping import factorize_damped


def test_damping_is_raised_only_for_indefinite_matrices() -> None:
    gram = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, -0.05]))]).double()
    factor, damping = factorize_damped(gram, torch.tensor([0.01, 0.01], dtype=torch.float64))
    torch.testing.assert_close(damping, torch.tensor([0.01, 0.1], dtype=torch.float64))
    torch.testing.assert_close(factor @ factor.mT, gram + damping.view(2, 1, 1) * torch.eye(3))


def test_a_matrix_that_is_not_finite_does_not_loop_forever() -> None:
    _, damping = factorize_damped(torch.full((1, 2, 2), float("nan")), torch.tensor([0.5]))
    assert damping.tolist() == [0.5]
