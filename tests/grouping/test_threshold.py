"""No group numbers remove more than asked plus the tolerance, whatever the importances are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from helpers.kinds import MATRICES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgb_lightning import PruningConfig
from pgb_lightning.grouping.group_numbers import GroupNumbers, ImportanceSummary, cost_of, total_cost
from pgb_lightning.grouping.reachable import nearest_reachable
from pgb_lightning.grouping.threshold import adjust_to_budget, choose_group_numbers, numbers_by_threshold

#: How the importances of a matrix are drawn: with ties, zeros, and values that are not finite.
KINDS = ("random", "zero", "ones", "steps", "infinite", "partly infinite", "nan", "tiny", "huge")


def draw(kind: str, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    values = torch.rand(rows, columns, generator=generator)
    made = {
        "random": values**4,
        "zero": values * 0,
        "ones": torch.ones_like(values),
        "steps": (values * 3).round(),
        "infinite": torch.full_like(values, math.inf),
        "partly infinite": values.where(values < 0.5, torch.tensor(math.inf)),
        "nan": values.where(values < 0.9, torch.tensor(math.nan)),
        "tiny": values * 1e-40,
        "huge": values * 3e38,
    }
    return made[kind]


@st.composite
def encoders(draw_from: st.DrawFn) -> dict[tuple[int, str], ImportanceSummary]:
    """Draw the summaries of an encoder of one to three layers; some sizes have no groups at all."""
    width, neurons = draw_from(st.sampled_from([(4, 8), (6, 12), (12, 48), (5, 7), (1, 1)]))
    layers, max_groups = draw_from(st.integers(1, 3)), draw_from(st.sampled_from([1, 2, 6]))
    shapes = {"W1": (width, neurons), "W2": (neurons, width)}
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 100)))
    same = draw_from(st.one_of(st.none(), st.sampled_from(KINDS)))
    found = {}
    for layer in range(layers):
        for kind in MATRICES:
            values = draw(same or draw_from(st.sampled_from(KINDS)), *shapes.get(kind, (width, width)), generator)
            found[layer, kind] = ImportanceSummary.from_importance(values, max_groups)
    return found


def removed_by(numbers: GroupNumbers, summaries: dict[tuple[int, str], ImportanceSummary]) -> float:
    return 1 - cost_of(summaries, numbers) / total_cost(summaries)


RATIO, TOLERANCE = st.floats(0.01, 0.99), st.sampled_from([1e-9, 0.005, 0.1])


@settings(max_examples=150, deadline=None)
@given(summaries=encoders(), ratio=RATIO, tolerance=TOLERANCE)
def test_auto_never_removes_more(
    summaries: dict[tuple[int, str], ImportanceSummary], ratio: float, tolerance: float
) -> None:
    config = PruningConfig(search="groups", pruning_ratio=ratio, tolerance=tolerance)
    numbers, threshold = choose_group_numbers(summaries, config)
    assert removed_by(numbers, summaries) <= ratio + tolerance + 1e-9
    assert threshold >= 0
    for layer, kind in numbers:  # a sublayer is dropped as a whole
        if kind in ("V", "O"):
            assert (numbers[layer, kind] == 0) == (numbers[layer, "O"] == 0)
    assert choose_group_numbers(summaries, config)[0] == numbers


@settings(max_examples=150, deadline=None)
@given(summaries=encoders(), ratio=RATIO, tolerance=TOLERANCE, threshold=st.sampled_from([1e-30, 1e-3, 0.5, 1.0, 1e30]))
def test_a_given_threshold_removes_no_more_or_is_refused(
    summaries: dict[tuple[int, str], ImportanceSummary], ratio: float, tolerance: float, threshold: float
) -> None:
    config = PruningConfig(search="groups", pruning_ratio=ratio, tolerance=tolerance, importance_threshold=threshold)
    message = ""
    try:
        numbers, used = choose_group_numbers(summaries, config)
    except ValueError as error:
        message = str(error)
    if message:
        assert f"importance_threshold={threshold} " in message
        assert f"pruning_ratio={ratio} " in message
        assert '"auto"' in message
    else:
        assert used == threshold
        assert removed_by(numbers, summaries) <= ratio + tolerance + 1e-9


@settings(max_examples=150, deadline=None)
@given(summaries=encoders(), ratio=RATIO, tolerance=TOLERANCE, dropped=st.booleans())
@example(summaries={}, ratio=0.5, tolerance=0.005, dropped=True)
def test_adjustment_ends_at_the_budget_or_above_from_any_start(
    summaries: dict[tuple[int, str], ImportanceSummary], ratio: float, tolerance: float, dropped: bool
) -> None:
    total = total_cost(summaries)
    start = dict.fromkeys(summaries, 0 if dropped else 1)
    found = adjust_to_budget(start, summaries, (1 - ratio) * total, tolerance)
    assert cost_of(summaries, found) >= (1 - ratio - tolerance) * total - 1e-9


def test_auto_takes_the_threshold_with_the_least_predicted_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    summaries = {
        (layer, kind): ImportanceSummary.from_importance(draw("random", 12, 12, generator), 6)
        for layer in range(3)
        for kind in MATRICES
    }
    config = PruningConfig(search="groups", pruning_ratio=0.5)
    candidates = numbers_by_threshold(summaries, config)
    assert [t for t, _ in candidates] == sorted({t for t, _ in candidates})
    assert len(candidates) > 2

    def removed_from_attention(choices: Sequence[GroupNumbers]) -> list[float]:
        return [sum(numbers[layer, kind] != 1 for layer in range(3) for kind in "QKVO") for numbers in choices]

    fewest = min(removed_from_attention([numbers for _, numbers in candidates]))
    numbers, threshold = choose_group_numbers(summaries, config, predict=removed_from_attention)
    assert removed_from_attention([numbers]) == [fewest]
    assert (threshold, numbers) in candidates
    assert choose_group_numbers(summaries, config) == candidates[-1][::-1]


def test_importances_without_signal_remove_no_more_than_asked() -> None:
    summaries = {
        (layer, kind): ImportanceSummary.from_importance(torch.zeros(12, 12), 6)
        for layer in range(3)
        for kind in MATRICES
    }
    numbers, _ = choose_group_numbers(summaries, PruningConfig(search="groups"))
    assert removed_by(numbers, summaries) == pytest.approx(0.5, abs=0.005)


@settings(max_examples=50, deadline=None)
@given(ratio=RATIO, tolerance=TOLERANCE, max_groups=st.integers(1, 6), layers=st.integers(1, 2))
def test_a_reachable_ratio_removes_no_more_than_asked(
    ratio: float, tolerance: float, max_groups: int, layers: int
) -> None:
    shapes = {(layer, kind): (12, 12) for layer in range(layers) for kind in MATRICES}
    config = PruningConfig(search="groups", pruning_ratio=ratio, tolerance=tolerance, max_groups=max_groups)
    assert 0 <= nearest_reachable(shapes, config) <= ratio + tolerance
