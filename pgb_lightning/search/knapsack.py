"""The choice of one candidate per sublayer within a budget: a multiple-choice knapsack problem."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Number of cells that a budget is divided into.
CELLS = 20_000


def solve_knapsack(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    slack: float,
    cells: int = CELLS,
) -> list[int]:
    """Choose one candidate from each list such that the total loss is minimal and the total cost is within the budget.

    The problem is solved by dynamic programming over the cost.

    Args:
        losses: Predicted loss of each candidate, one list per sublayer.
        costs: Cost of each candidate, nonnegative, one list per sublayer.
        budget: Maximum total cost.
        slack: The total cost is between ``budget - slack`` and ``budget`` if possible. Otherwise it is the largest
            total below the budget, or, if every choice exceeds the budget, the smallest total.
        cells: Resolution of the cost. Costs are exact if they are multiples of one number that fits into the budget at
            most ``cells`` times; otherwise they are rounded up to multiples of ``budget / cells``, so that the budget
            is never exceeded.

    Returns:
        The index of the chosen candidate in each list.

    Example:
        >>> solve_knapsack([[0.0, 1.0, 4.0], [0.0, 2.0]], [[6, 4, 0], [6, 3]], budget=9, slack=2)
        [0, 1]
    """
    cell, cells = _cell_size(costs, budget, cells)
    options = [_undominated(loss, cost, cell) for loss, cost in zip(losses, costs, strict=True)]
    # After i lists, best[c] is the smallest loss at which the first i candidates cost c cells together.
    size = cells + 1
    best = np.full(size, np.inf)
    best[0] = 0.0
    picks: list[NDArray[np.int32]] = []
    for indices, steps in options:
        after, pick = np.full(size, np.inf), np.full(size, -1, dtype=np.int32)
        for index, step, loss in zip(indices, steps, np.asarray(losses[len(picks)])[indices], strict=True):
            if step < size:
                reached = best[: size - step] + loss
                better = reached < after[step:]
                after[step:][better] = reached[better]
                pick[step:][better] = index
        best = after
        picks.append(pick)
    if not np.isfinite(best).any():
        return [int(np.argmin(cost)) for cost in costs]  # nothing fits into the budget: take the cheapest of each
    lowest = min(int((budget - slack) / cell), cells)
    within = np.arange(max(lowest, 0), size)
    if not np.isfinite(best[within]).any():
        within = np.flatnonzero(np.isfinite(best))[-1:]
    here = int(within[np.argmin(best[within])])
    chosen: list[int] = []
    for (indices, steps), pick in zip(reversed(options), reversed(picks), strict=True):
        chosen.append(int(pick[here]))
        here -= int(steps[np.flatnonzero(indices == pick[here])[0]])
    return chosen[::-1]


def _cell_size(costs: Sequence[Sequence[float]], budget: float, cells: int) -> tuple[float, int]:
    """Return the cost of a cell and the number of cells, exact if all costs are multiples of one number."""
    flat = [cost for options in costs for cost in options]
    if all(float(cost).is_integer() for cost in flat):
        common = math.gcd(*map(int, flat)) or 1
        if budget / common <= cells:
            return common, int(budget / common + 1e-9)
    return max(budget, 1e-12) / cells, cells


def _undominated(
    losses: Sequence[float], costs: Sequence[float], cell: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the Pareto-optimal candidates in loss and cost, and their costs in cells."""
    loss, cost = np.asarray(losses, dtype=float), np.asarray(costs, dtype=float)
    order = np.lexsort((loss, cost))
    best = np.concatenate(([np.inf], np.minimum.accumulate(loss[order])[:-1]))
    kept = order[loss[order] < best]
    # Subtract a tiny number before rounding up, so that rounding errors do not make an exact multiple one cell larger.
    return kept, np.ceil(cost[kept] / cell - 1e-9).astype(np.int64)
