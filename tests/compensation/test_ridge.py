"""The ridge is chosen by held-out samples, and the final weights are fitted to all samples."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.tiny import batches, classifier

from pgb_lightning import PruningConfig
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.moments import Moments
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.compensation.least_squares import LeastSquares
from pgb_lightning.compensation.ridge import HELD_OUT, RIDGES, SplitMoments, choose_ridge, held_out_mask
from pgb_lightning.config import DEFAULT_RIDGE, ridge_or_default
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import make_plan

ROWS, COLUMNS = torch.tensor([[0, 3, 5], [1, 2, 4]]), torch.tensor([[3, 0], [1, 2]])


def problem(moments: Moments) -> LeastSquares:
    return LeastSquares(moments.gram, moments.cross, moments.power(ROWS))


def moments_of(x: torch.Tensor, y: torch.Tensor, held: torch.Tensor | None) -> SplitMoments:
    moments = SplitMoments(ROWS, COLUMNS, 6, 4)
    for start in range(0, len(x), 13):
        part = slice(start, start + 13)
        moments.add(x[part], y[part], None if held is None else held[part])
    moments.finish(lambda tensor: tensor)
    return moments


def data(tokens: int, noise: float):
    """Make inputs and targets that the weights in ``start`` explain up to noise."""
    torch.manual_seed(0)
    x = torch.randn(tokens, 6) + 2
    start = torch.randn(2, 3, 2, dtype=torch.float64)
    y = noise * torch.randn(tokens, 4)
    for rows, columns, block in zip(ROWS, COLUMNS, start.float(), strict=True):
        y[:, columns] += x[:, rows] @ block
    return x, y, start


def test_moments_of_all_samples_equal_those_without_a_split() -> None:
    x, y, _ = data(100, noise=1.0)
    held = torch.arange(100) % 3 == 0
    split, one = moments_of(x, y, held).all, Moments(ROWS, COLUMNS, 6, 4)
    one.add(x, y)
    one.finish(lambda tensor: tensor)
    for name in ("gram", "cross", "mean_x", "mean_y", "total_squares", "count"):
        torch.testing.assert_close(getattr(split, name), getattr(one, name), rtol=1e-5, atol=1e-4)


def test_noise_gives_a_large_ridge_and_changed_weights_a_small_one() -> None:
    held = torch.arange(60) % HELD_OUT == 0
    x, y, start = data(60, noise=3.0)
    assert choose_ridge("auto", moments_of(x, y, held), problem, start) == max(RIDGES)
    x, y, start = data(60, noise=0.0)
    assert choose_ridge("auto", moments_of(x, y, held), problem, start + 1) == min(RIDGES)


def test_the_chosen_ridge_is_the_best_on_held_out_samples() -> None:
    x, y, start = data(40, noise=0.7)
    held, start = torch.arange(40) % HELD_OUT == 1, start + 0.3
    moments = moments_of(x, y, held)

    def error(ridge: float) -> float:
        weight = problem(moments.fitted).solve(start, ridge).float()
        centered_x, centered_y = (z[held] - z[held].mean(0) for z in (x, y))
        blocks = zip(ROWS, COLUMNS, weight, strict=True)
        return sum(float((centered_y[:, c] - centered_x[:, r] @ w).square().sum()) for r, c, w in blocks)

    assert choose_ridge("auto", moments, problem, start) == min(RIDGES, key=error)


def test_a_number_is_used_as_is_and_too_few_samples_give_the_default() -> None:
    x, y, start = data(20, noise=1.0)
    assert choose_ridge(0.3, moments_of(x, y, torch.arange(20) < 4), problem, start) == 0.3
    for held in (None, torch.zeros(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)):
        assert choose_ridge("auto", moments_of(x, y, held), problem, start) == DEFAULT_RIDGE
    assert (ridge_or_default("auto"), ridge_or_default(0.3)) == (DEFAULT_RIDGE, 0.3)


def test_complete_samples_are_held_out_and_padding_is_not_counted() -> None:
    tokens = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    assert held_out_mask(tokens).tolist() == [False, False, False, True, True, True]
    full = torch.ones(2 * HELD_OUT + 1, 1, dtype=torch.bool)
    assert held_out_mask(full).nonzero().flatten().tolist() == [HELD_OUT - 1, 2 * HELD_OUT - 1]
    assert not held_out_mask(full[:1]).any()
    assert held_out_mask(full[:0]).tolist() == []


@pytest.mark.parametrize("preset", ["balanced", "default"])
def test_auto_is_nearly_as_good_as_the_best_fixed_ridge(preset: str) -> None:
    dense = classifier(layers=1)
    found = calibrate(find_encoder(dense), batches(8), lambda batch: dense(**batch).loss, moments=True)
    plan = make_plan(find_encoder(dense), found, PruningConfig.from_preset(preset))
    seen = torch.cat([dense(**batch).logits for batch in batches(8)])

    def error(ridge) -> float:
        model = copy.deepcopy(dense)
        compensate(find_encoder(model), plan, found.inputs, ridge)
        return float((torch.cat([model(**batch).logits for batch in batches(8)]) - seen).square().mean())

    with torch.no_grad():
        assert error("auto") < 1.5 * min(map(error, RIDGES))
