"""Balanced assignment: optimal, also if scores are equal."""

from __future__ import annotations

import itertools

import pytest
import torch

from pgb_lightning.grouping import assignment
from pgb_lightning.grouping.assignment import assign


@pytest.mark.parametrize("values", ["distinct", "equal"])
@pytest.mark.parametrize("max_sweeps", [1, 200])
def test_no_other_assignment_has_a_larger_score(values: str, max_sweeps: int) -> None:
    torch.manual_seed(0)
    for _ in range(10):
        score = torch.rand(6, 3, dtype=torch.float64) ** 3
        if values == "equal":
            score = (score * 2).round()
        chosen = assign(score, max_sweeps)
        assert sorted(chosen.flatten().tolist()) == list(range(6))
        assert torch.equal(chosen, chosen.sort(dim=1).values)
        best = max(
            sum(score[item, place // 2] for place, item in enumerate(order))
            for order in itertools.permutations(range(6))
        )
        found = score.T.gather(1, chosen).sum()
        assert float(found) == pytest.approx(float(best))


def test_one_group_gets_all_items() -> None:
    assert assign(torch.zeros(3, 1)).tolist() == [[0, 1, 2]]


def test_prices_of_an_earlier_assignment_are_right_for_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    score, prices = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(3)
    chosen = assign(score, prices=prices)
    assert torch.equal(chosen, assign(score))
    assert prices.any()
    monkeypatch.setattr(assignment, "linear_sum_assignment", None)  # which would be used if the prices were wrong
    assert torch.equal(assign(score, max_sweeps=0, prices=prices), chosen)
