"""Mask tuning, compared with an explicit least-squares system."""

from __future__ import annotations

import pytest
import torch

from pgb_lightning.experiments.baselines.mask_tuning import solve_masks


@pytest.mark.parametrize("unit", [1, 3])
def test_masks_solve_the_least_squares_problem(unit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 6, generator=generator).double(), torch.randn(6, 4, generator=generator).double()
    target = torch.randn(50, 4, generator=generator).double()
    parts = (x.view(50, -1, 1, unit) @ w.view(-1, unit, 4)).squeeze(2)  # contribution of each unit, (50, units, 4)
    plain = parts.permute(0, 2, 1).flatten(0, 1)
    expected = torch.linalg.lstsq(plain, target.flatten().unsqueeze(1)).solution.squeeze(1)
    found = solve_masks(x.T @ x, x.T @ (target - x @ w), w, unit, ridge=1e-12)
    torch.testing.assert_close(found, expected)
    assert (solve_masks(x.T @ x, x.T @ (target - x @ w), w, unit, ridge=1e9) - 1).abs().max() < 1e-6
