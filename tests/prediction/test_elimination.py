"""The closed forms of the error after compensation equal explicit least-squares fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgb_lightning.prediction.elimination import add_damping, block_errors, eliminate, unit_indices


def problem(
    tokens: int = 400, inputs: int = 12, outputs: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw correlated inputs, weights, output gradients, and their second moment."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mixing + 3
    weight = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    root = torch.randn(outputs, outputs, generator=generator, dtype=torch.float64)
    return x, weight, root @ root.T, torch.cov(x.T, correction=0)


def residual(x: Tensor, targets: Tensor) -> Tensor:
    """Return the residual of the best linear fit with a bias."""
    centered, wanted = x - x.mean(0), targets - targets.mean(0)
    return wanted - centered @ torch.linalg.lstsq(centered, wanted).solution


@pytest.mark.parametrize(("unit", "step"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_losses_equal_those_of_least_squares_on_the_kept_units(unit: int, step: int) -> None:
    x, weight, outputs, covariance = problem()
    found = eliminate(add_damping(covariance, 1e-12), weight, outputs, unit, step)
    assert found.counts == [*range(0, 12 // unit, step), 12 // unit]
    assert sorted(found.order.tolist()) == list(range(12 // unit))
    for count, loss in zip(found.counts, found.losses, strict=True):
        left = residual(x[:, unit_indices(found.kept_units(count), unit)], x @ weight)
        expected = torch.trace(outputs @ left.T @ left) / len(x) / 2
        torch.testing.assert_close(torch.tensor(loss, dtype=torch.float64), expected, rtol=1e-6, atol=1e-6)


def test_each_step_removes_the_least_harmful_unit() -> None:
    x, weight, outputs, covariance = problem(seed=1)
    found = eliminate(add_damping(covariance, 1e-12), weight, outputs)
    for count in (0, 4, 9):
        kept = found.kept_units(count).tolist()
        increases = {}
        for unit in kept:
            left = residual(x[:, [k for k in kept if k != unit]], x @ weight)
            increases[unit] = float(torch.trace(outputs @ left.T @ left))
        assert int(found.order[count]) == min(increases, key=increases.__getitem__)


def test_weights_of_kept_units_are_refitted() -> None:
    x, weight, outputs, covariance = problem(seed=2)
    found = eliminate(add_damping(covariance, 1e-12), weight, outputs, keep=(0, 5))
    assert found.weights.keys() == {0, 5}
    torch.testing.assert_close(found.weights[0], weight)
    kept = x[:, found.kept_units(5)]
    expected = torch.linalg.lstsq(kept - kept.mean(0), x @ weight - (x @ weight).mean(0)).solution
    torch.testing.assert_close(found.weights[5], expected, rtol=1e-6, atol=1e-6)


def test_the_damping_is_the_ridge_of_compensation() -> None:
    """Least squares with a penalty on the distance from the old weights is least squares on H + λI."""
    _, weight, outputs, covariance = problem(seed=3)
    found = eliminate(add_damping(covariance, 0.1), weight, outputs)
    h = add_damping(covariance, 0.1)
    kept = found.kept_units(7)
    schur = h - h[:, kept] @ torch.linalg.solve(h[kept][:, kept], h[kept])
    expected = torch.trace(outputs @ weight.T @ schur @ weight) / 2
    assert found.losses[found.counts.index(7)] == pytest.approx(float(expected), rel=1e-9)


def test_block_errors_equal_those_of_least_squares() -> None:
    x, weight, _, covariance = problem(seed=4)
    rows, columns = torch.randperm(12).view(2, 6)[:, :5], torch.tensor([[5, 0], [2, 3]])
    errors = block_errors(
        add_damping(covariance, 1e-12), weight, add_damping(covariance, 1e-12) @ weight, rows, columns
    )
    targets = x @ weight
    for r, c in zip(rows, columns, strict=True):
        expected = residual(x[:, r], targets[:, c]).square().mean(0)
        torch.testing.assert_close(errors[c], expected, rtol=1e-6, atol=1e-6)
    outside = [1, 4]
    torch.testing.assert_close(errors[outside], targets[:, outside].var(0, correction=0), rtol=1e-6, atol=1e-6)
