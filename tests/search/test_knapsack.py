"""The knapsack solver equals exhaustive search, and never removes more than asked plus the slack."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgb_lightning.search.knapsack import CELLS, solve_knapsack

Options = list[list[tuple[float, float]]]
#: With ties, zeros and losses that are not finite.
LOSS = st.one_of(st.sampled_from([0.0, 1.0, math.inf, math.nan]), st.floats(0, 10).map(lambda loss: round(loss, 3)))


def options(cost: st.SearchStrategy[float], most: int = 5) -> st.SearchStrategy[Options]:
    """Draw the loss and cost of the candidates of some sublayers; some have only one candidate."""
    return st.lists(st.lists(st.tuples(LOSS, cost), min_size=1, max_size=most), min_size=1, max_size=4)


def total(values: list[list[float]], chosen: tuple[int, ...] | list[int]) -> float:
    return math.fsum(part[index] for part, index in zip(values, chosen, strict=True))


def rank(losses: list[list[float]], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    """Return the number of losses that are not finite, and the sum of the others."""
    values = [part[index] for part, index in zip(losses, chosen, strict=True)]
    finite = [value for value in values if math.isfinite(value)]
    return len(values) - len(finite), round(math.fsum(finite), 9)


@settings(max_examples=100, deadline=None)
@given(given=options(st.integers(0, 30)), ratio=st.floats(0, 1), slack=st.floats(0, 0.3), scale=st.sampled_from([1, 7]))
@example(given=[[(0.0, 10), (0.0, 0)]] * 3, ratio=0.5, slack=0.005, scale=1)  # no signal
@example(given=[[(math.inf, 10), (math.inf, 9), (0.0, 0)]], ratio=0.1, slack=0.0, scale=1)
def test_it_equals_exhaustive_search(given: Options, ratio: float, slack: float, scale: int) -> None:
    losses = [[loss for loss, _ in part] for part in given]
    costs = [[float(scale * cost) for _, cost in part] for part in given]
    dense = sum(map(max, costs))
    budget, slack = (1 - ratio) * dense, slack * dense
    chosen = solve_knapsack(losses, costs, budget, slack)
    cost, near = total(costs, chosen), 1e-6
    assert cost >= budget - slack - near
    choices = [(total(costs, picked), rank(losses, picked)) for picked in product(*map(range, map(len, costs)))]
    within = [loss for each, loss in choices if budget - slack - near <= each <= budget + near]
    if within:
        assert cost <= budget + near
        assert rank(losses, chosen) == min(within)
    else:
        assert cost == min(each for each, _ in choices if each > budget)


@settings(max_examples=100, deadline=None)
@given(
    given=options(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), most=8),
    ratio=st.floats(0, 1),
    slack=st.sampled_from([0.0, 1e-9, 0.005, 0.2]),
    cells=st.sampled_from([1, 7, 300, CELLS]),
)
def test_rounding_of_measured_costs_never_removes_more(given: Options, ratio: float, slack: float, cells: int) -> None:
    losses = [[loss for loss, _ in part] for part in given]
    costs = [[cost for _, cost in part] for part in given]
    dense = sum(map(max, costs))
    budget, slack = (1 - ratio) * dense, slack * dense
    chosen = solve_knapsack(losses, costs, budget, slack, cells)
    assert total(costs, chosen) >= budget - slack - 1e-9 * dense
    assert chosen == solve_knapsack(losses, costs, budget, slack, cells)


def test_the_cost_is_within_the_slack_below_the_budget_if_possible() -> None:
    losses, costs = [[0.0, 1.0], [0.0, 5.0]], [[10, 1], [10, 3]]
    assert solve_knapsack(losses, costs, budget=13, slack=3) == [1, 0]
    assert solve_knapsack(losses, costs, budget=13, slack=1) == [0, 1]  # the choice with less loss costs only 11
    assert solve_knapsack(losses, costs, budget=5, slack=0.5) == [1, 0]  # no choice costs between 4.5 and 5
    assert solve_knapsack(losses, costs, budget=50, slack=1) == [0, 0]  # all choices cost less


def test_of_equal_losses_the_higher_cost_is_taken() -> None:
    costs = [[*map(float, range(20, -1, -1))]] * 2
    assert total(costs, solve_knapsack([[0.0] * 21] * 2, costs, budget=30, slack=4)) == 30
    assert solve_knapsack([[0.0, 1.0, 1.0], [0.0]], [[9, 5, 4], [1]], budget=6, slack=2) == [1, 0]


def test_sums_of_losses_do_not_overflow() -> None:
    losses = [[0.0, 1e308, math.inf], [1e-300, 1.5e308, math.nan], [-1e308, 1.7e308, -math.inf]]
    assert solve_knapsack(losses, [[2, 1, 0]] * 3, budget=3, slack=0) == [1, 1, 1]
    assert solve_knapsack(losses, [[2, 1, 0]] * 3, budget=2, slack=0) == [1, 1, 2]


def test_a_candidate_that_costs_more_at_no_less_loss_is_taken_where_nothing_else_meets_the_budget() -> None:
    assert solve_knapsack([[0.0, 0.0, 0.0]], [[10, 5, 0]], budget=5, slack=0) == [1]
    assert solve_knapsack([[0.0, 3.0, 1.0]], [[10, 5, 0]], budget=5, slack=0) == [1]


def test_many_candidates_with_fractional_costs_meet_the_budget() -> None:
    costs = [[float(7919 * (k + 1) % 1009) + 0.1 * k for k in range(60)] for _ in range(12)]
    losses = [[layer / (1 + cost) for cost in part] for layer, part in enumerate(costs, start=1)]
    budget = 0.4 * sum(map(max, costs))
    chosen = solve_knapsack(losses, costs, budget, slack=0.005 * budget)
    cost = sum(part[place] for part, place in zip(costs, chosen, strict=True))
    assert 0.995 * budget <= cost <= budget
    assert chosen == solve_knapsack(losses, costs, budget, slack=0.005 * budget)


@pytest.mark.parametrize("budget", [0, 1e-9])
def test_a_zero_budget_takes_the_cheapest(budget: float) -> None:
    assert solve_knapsack([[0, 1, 5]] * 3, [[9, 3, 0]] * 3, budget, slack=0) == [2, 2, 2]
