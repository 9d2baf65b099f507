"""The knapsack solver equals exhaustive search and never exceeds the budget."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgb_lightning.search.knapsack import solve_knapsack

Options = list[list[tuple[float, int]]]
OPTION = st.tuples(st.floats(0, 10).map(lambda loss: round(loss, 3)), st.integers(0, 30))


@settings(max_examples=100, deadline=None)
@given(
    options=st.lists(st.lists(OPTION, min_size=1, max_size=5), min_size=1, max_size=4),
    share=st.floats(0.05, 1),
    scale=st.sampled_from([1, 7, 0.37]),
)
def test_it_equals_exhaustive_search(options: Options, share: float, scale: float) -> None:
    losses = [[loss for loss, _ in part] for part in options]
    costs = [[scale * cost for _, cost in part] for part in options]
    budget = share * sum(map(max, costs))
    # Costs that are not multiples of one number are rounded up by less than one cell each.
    allowance = 0 if scale >= 1 else len(options) * budget / 20_000
    chosen = solve_knapsack(losses, costs, budget, slack=budget)
    sums = [
        (sum(c[i] for c, i in zip(costs, picked, strict=True)), sum(v[i] for v, i in zip(losses, picked, strict=True)))
        for picked in product(*(range(len(part)) for part in options))
    ]
    affordable = [loss for cost, loss in sums if cost <= budget - allowance + 1e-9]
    cost = sum(c[i] for c, i in zip(costs, chosen, strict=True))
    loss = sum(v[i] for v, i in zip(losses, chosen, strict=True))
    if affordable:
        assert cost <= budget * (1 + 1e-9)
        assert loss <= min(affordable) + 1e-9
    elif not [1 for cost, _ in sums if cost <= budget + 1e-9]:
        assert cost == min(cost for cost, _ in sums)


def test_the_cost_is_within_the_slack_below_the_budget_if_possible() -> None:
    losses, costs = [[0.0, 1.0], [0.0, 5.0]], [[10, 1], [10, 3]]
    assert solve_knapsack(losses, costs, budget=13, slack=3) == [1, 0]
    assert solve_knapsack(losses, costs, budget=13, slack=1) == [0, 1]  # the choice with less loss costs only 11
    assert solve_knapsack(losses, costs, budget=5, slack=0.5) == [1, 1]  # no choice costs between 4.5 and 5


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
