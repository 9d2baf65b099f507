"""No choice of shapes removes more than asked plus the tolerance, whatever the predicted losses are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from helpers.tiny import classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from test_candidates import candidates_of

from pgb_lightning import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.search.costs import candidate_cost
from pgb_lightning.search.planning import choose_shapes

KINDS = ("ordinary", "zero", "equal", "steps", "infinite", "nan", "reversed")
TOLERANCE = st.sampled_from([1e-9, 0.005, 0.1])


@dataclass(frozen=True)
class Shape:
    """What the search knows of a candidate."""

    loss: float
    cost: float


def loss_of(kind: str, share: float, noise: float) -> float:
    """Return the loss of a candidate that keeps a share of its sublayer; 0 if it keeps everything."""
    losses = {
        "ordinary": (1 - share) * (0.5 + noise),
        "zero": 0.0,
        "equal": 1.0,
        "steps": float(round(3 * noise)),
        "infinite": math.inf,
        "nan": math.nan if noise < 0.5 else noise,
        "reversed": share,
    }
    return losses[kind] if share < 1 else 0.0


@cache
def real_costs(budget: str, layers: int) -> list[list[float]]:
    """Return the costs of all shapes of a tiny encoder."""
    model = classifier(layers=layers)
    options, encoder = candidates_of(model), find_encoder(model)
    cost = candidate_cost(encoder, options, PruningConfig(budget=budget))  # type: ignore[arg-type]
    return [[cost(candidate) for candidate in part] for part in options]


def removed_by(chosen: list[Shape], options: list[list[Shape]]) -> float:
    return 1 - sum(shape.cost for shape in chosen) / sum(part[0].cost for part in options)


def choose(options: list[list[Shape]], ratio: float, tolerance: float) -> list[Shape]:
    found: Any = choose_shapes(options, ratio, tolerance, lambda shape: shape.cost)  # type: ignore[arg-type, attr-defined]
    return list(found)


@pytest.mark.parametrize("budget", ["parameters", "flops"])
@settings(max_examples=15, deadline=None)
@given(ratio=st.floats(0.01, 0.99), tolerance=TOLERANCE, kinds=st.lists(st.sampled_from(KINDS), min_size=4, max_size=4))
def test_all_shapes_of_a_tiny_encoder(budget: str, ratio: float, tolerance: float, kinds: list[str]) -> None:
    options = [
        [Shape(loss_of(kind, cost / max(part), (37 * place % 101) / 101), cost) for place, cost in enumerate(part)]
        for part, kind in zip(real_costs(budget, 2), kinds, strict=True)
    ]
    assert removed_by(choose(options, ratio, tolerance), options) <= ratio + tolerance + 1e-9


@settings(max_examples=50, deadline=None)
@given(
    ratio=st.floats(0.01, 0.99),
    tolerance=TOLERANCE,
    kind=st.sampled_from(KINDS),
    costs=st.lists(st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=12), min_size=1, max_size=6),
)
def test_measured_costs(ratio: float, tolerance: float, kind: str, costs: list[list[float]]) -> None:
    """Measured times are real numbers, and some shapes take longer than the dense sublayer."""
    options = [
        [Shape(loss_of(kind, min(cost / part[0], 1.0), place / 12), cost) for place, cost in enumerate(part)]
        for part in costs
    ]
    chosen = choose(options, ratio, tolerance)
    assert removed_by(chosen, options) <= ratio + tolerance + 1e-9
    assert all(shape.cost <= part[0].cost for shape, part in zip(chosen, options, strict=True))


def test_losses_without_signal_remove_what_was_asked() -> None:
    options = [[Shape(0.0, cost) for cost in part] for part in real_costs("parameters", 2)]
    assert removed_by(choose(options, 0.5, 0.005), options) == pytest.approx(0.5, abs=0.005)
    only_dense = [part[:1] for part in options]
    assert choose(only_dense, 0.5, 0.005) == [part[0] for part in only_dense]
