"""The warning about a plan that misses its target."""

from __future__ import annotations

import warnings
from typing import get_args

import pytest

from pgb_lightning.config import Budget, PruningConfig
from pgb_lightning.target_warning import warn_if_missed


@pytest.mark.parametrize("budget", get_args(Budget))
def test_every_budget_has_a_warning(budget: Budget) -> None:
    config = PruningConfig(pruning_ratio=0.5, budget=budget)
    with pytest.warns(UserWarning, match=r"pruning_ratio=0\.5 .*0\.4600"):
        warn_if_missed(0.46, config)


@pytest.mark.parametrize(("budget", "removed"), [("parameters", 0.491), ("flops", 0.509), ("latency", 0.471)])
def test_small_distances_are_accepted(budget: Budget, removed: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_missed(removed, PruningConfig(pruning_ratio=0.5, budget=budget))
