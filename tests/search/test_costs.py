"""Budgets: what cannot be measured is refused before the calibration."""

from __future__ import annotations

import pytest
from helpers.families import tiny_batches, tiny_model

from pgb_lightning import PruningConfig, prune
from pgb_lightning.pruning import prepare


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("roformer", {"pruning_ratio": 0.5, "budget": "latency"}),
        ("deberta-v2 with position projections", {"target_speedup": 1.5}),
    ],
)
def test_a_length_that_the_model_does_not_take_is_refused(name: str, settings: dict[str, float | str]) -> None:
    model = tiny_model(name)
    with pytest.raises(ValueError, match=r"latency_length=128.*latency_length=64"):
        prune(model, [], PruningConfig(latency_length=128, **settings))  # type: ignore[arg-type]
    prepare(model, PruningConfig(latency_length=64, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nomic_bert", "deberta"])
def test_relative_and_rotary_positions_may_go_beyond_the_longest_text(name: str) -> None:
    model = tiny_model(name)
    config = PruningConfig(pruning_ratio=0.3, budget="latency", latency_length=80, latency_batch_size=1)
    prune(model, tiny_batches(2), config)
