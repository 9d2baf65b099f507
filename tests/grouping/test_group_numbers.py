"""Algorithm 1, the search for τ, and meeting the pruning ratio."""

from __future__ import annotations

import pytest
import torch
from helpers.kinds import MATRICES, SUBLAYERS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgb_lightning import PruningConfig
from pgb_lightning.grouping.group_numbers import ImportanceSummary, assign_group_numbers, determine_group_number
from pgb_lightning.grouping.reachable import check_reachable, nearest_reachable
from pgb_lightning.grouping.threshold import adjust_to_budget, choose_group_numbers

SHAPES = {"W1": (24, 96), "W2": (96, 24)}


def importances(layers: int = 4, seed: int = 0, scale: float = 1.0) -> dict[tuple[int, str], Tensor]:
    """Draw skewed importances with a different level for each matrix."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for layer in range(layers):
        for kind in MATRICES:
            level = 10 ** (scale * torch.rand(1, generator=generator))
            drawn[layer, kind] = level * torch.rand(SHAPES.get(kind, (24, 24)), generator=generator) ** 4
    return drawn


def summaries(**settings: float) -> dict[tuple[int, str], ImportanceSummary]:
    return {key: ImportanceSummary.from_importance(value, 6) for key, value in importances(**settings).items()}  # type: ignore[arg-type]


def cost(groups: dict[tuple[int, str], int], of: dict[tuple[int, str], ImportanceSummary]) -> int:
    return sum(of[key].cost(number) for key, number in groups.items())


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1000),
    max_groups=st.integers(1, 8),
    rounding=st.booleans(),
    quantile=st.floats(0, 1),
)
def test_a_summary_gives_the_same_group_number_as_the_definition(
    seed: int, max_groups: int, rounding: bool, quantile: float
) -> None:
    importance = torch.rand(12, 24, generator=torch.Generator().manual_seed(seed)) ** 3
    if rounding:
        importance = (importance * 4).round()
    for threshold in (float(importance.quantile(quantile)), float(torch.tensor(quantile))):
        important = int((importance > threshold).sum())
        expected = determine_group_number(12, 24, important, max_groups)
        assert ImportanceSummary.from_importance(importance, max_groups).group_number_at(threshold) == expected


def test_algorithm_1_groups_attention_first_and_drops_ffns_beyond_the_budget() -> None:
    of = summaries(scale=0.0)
    threshold = 0.05  # about half of the weights are above it
    everything = assign_group_numbers(of, threshold, budget=float("inf"))
    assert min(everything.values()) > 0
    attention = {key: number for key, number in everything.items() if key[1] in SUBLAYERS["attention"]}
    ffn_cost = cost({key: n for key, n in everything.items() if key[0] == 0 and key[1] in SUBLAYERS["ffn"]}, of)

    reached = assign_group_numbers(of, threshold, budget=cost(attention, of) + 1.5 * ffn_cost)
    assert {key: reached[key] for key in attention} == attention
    score = {layer: sum(of[layer, kind].importance for kind in ("W1", "W2")) for layer in range(4)}
    kept = {layer for layer in range(4) if reached[layer, "W1"]}
    assert kept == set(sorted(score, key=score.__getitem__, reverse=True)[:2])  # while C > 0: the second overshoots

    assert all(assign_group_numbers(of, threshold, budget=0)[layer, "W2"] == 0 for layer in range(4))


def test_a_sublayer_without_v_o_w1_or_w2_is_dropped() -> None:
    drawn = importances()
    drawn[1, "V"] *= 1e-9
    drawn[2, "Q"] *= 1e-9
    drawn[3, "W2"] *= 1e-9
    groups = assign_group_numbers(
        {key: ImportanceSummary.from_importance(value, 6) for key, value in drawn.items()}, 0.01, float("inf")
    )
    assert [groups[1, kind] for kind in SUBLAYERS["attention"]] == [0, 0, 0, 0]
    assert groups[2, "Q"] == 0
    assert groups[2, "V"] > 0
    assert [groups[3, kind] for kind in SUBLAYERS["ffn"]] == [0, 0]


@settings(max_examples=60, deadline=None)
@given(ratio=st.floats(0.1, 0.95), seed=st.integers(0, 50), scale=st.floats(0, 3))
def test_auto_meets_the_pruning_ratio_within_one_point(ratio: float, seed: int, scale: float) -> None:
    of = summaries(seed=seed, scale=scale)
    config = PruningConfig(pruning_ratio=ratio)
    groups, threshold = choose_group_numbers(of, config)
    total = cost(dict.fromkeys(of, 1), of)
    assert abs(1 - cost(groups, of) / total - ratio) <= 0.01
    assert threshold >= 0


def test_auto_keeps_every_ffn() -> None:
    groups, _ = choose_group_numbers(summaries(scale=0.0), PruningConfig(pruning_ratio=0.5))
    assert min(groups.values()) >= 1


def test_a_given_threshold_is_used_as_is() -> None:
    of = summaries()
    config = PruningConfig.from_preset("balanced", importance_threshold=0.02)
    groups, threshold = choose_group_numbers(of, config)
    assert threshold == 0.02
    assert groups == assign_group_numbers(of, 0.02, 0.5 * cost(dict.fromkeys(of, 1), of))


def test_adjustment_takes_few_steps_toward_the_budget() -> None:
    of = summaries()
    start = assign_group_numbers(of, 0.02, float("inf"))
    total = cost(dict.fromkeys(of, 1), of)
    goal = cost(start, of) - 0.03 * total
    adjusted = adjust_to_budget(start, of, goal, tolerance=0.005)
    assert abs(cost(adjusted, of) - goal) <= 0.005 * total
    assert sum(adjusted[key] != start[key] for key in of) <= 4
    assert adjust_to_budget(adjusted, of, goal, tolerance=0.005) == adjusted


def test_nearest_reachable_ratio_equals_exhaustive_search() -> None:
    shapes = {(0, kind): SHAPES.get(kind, (24, 24)) for kind in MATRICES}
    config = PruningConfig(pruning_ratio=0.9, max_groups=1)
    # Matrices are kept or removed: all, without Q and/or K, or without a sublayer. W1 and W2 are 4/12 of a layer each.
    kept = {a + f for a in (0, 2, 3, 4) for f in (0, 8)}
    expected = min((1 - k / 12 for k in kept), key=lambda ratio: abs(ratio - 0.9))
    assert nearest_reachable(shapes, config) == pytest.approx(expected)


def test_an_unreachable_ratio_raises_and_names_the_nearest() -> None:
    shapes = {(0, kind): SHAPES.get(kind, (24, 24)) for kind in MATRICES}
    check_reachable(shapes, PruningConfig(pruning_ratio=0.5))
    with pytest.raises(ValueError, match=r"pruning_ratio=0\.5 .*max_groups=1 .*0\.3333"):
        check_reachable(shapes, PruningConfig(pruning_ratio=0.5, max_groups=1))
