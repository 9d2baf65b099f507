"""One candidate for each sublayer, within a budget: a knapsack with choices, solved by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Cells that a budget is divided into.
CELLS = 20_000


def solve_knapsack(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    slack: float,
    cells: int = CELLS,
) -> list[int]:
    """Choose one candidate of each list so that the summed loss is least and the summed cost just below a budget.

    Args:
        losses: Predicted loss of each candidate, list by list.
        costs: Cost of each candidate, likewise; never negative.
        budget: The most that all may cost.
        slack: How far below the budget the sum may lie, where that can be reached; else the largest sum below the
            budget is taken, or where none is, the least there is.
        cells: Where costs are not small multiples of one number, they are rounded up to this many parts of the
            budget, so that the budget holds for certain.

    Returns:
        The position of the chosen candidate in each list.

    Example:
        >>> solve_knapsack([[0.0, 1.0, 4.0], [0.0, 2.0]], [[6, 4, 0], [6, 3]], budget=9, slack=2)
        [0, 1]
    """
    cell, cells = _cell(costs, budget, cells)
    options = [_useful(loss, cost, cell) for loss, cost in zip(losses, costs, strict=True)]
    # After i lists, best[c] is the least loss at which they cost c cells.
    room = cells + 1
    best = np.full(room, np.inf)
    best[0] = 0.0
    picks: list[NDArray[np.int32]] = []
    for positions, steps in options:
        after, pick = np.full(room, np.inf), np.full(room, -1, dtype=np.int32)
        for position, step, loss in zip(positions, steps, np.asarray(losses[len(picks)])[positions], strict=True):
            if step < room:
                reached = best[: room - step] + loss
                better = reached < after[step:]
                after[step:][better] = reached[better]
                pick[step:][better] = position
        best = after
        picks.append(pick)
    if not np.isfinite(best).any():
        return [int(np.argmin(cost)) for cost in costs]  # nothing fits: the cheapest of each
    lowest = min(int((budget - slack) / cell), cells)
    within = np.arange(max(lowest, 0), room)
    if not np.isfinite(best[within]).any():
        within = np.flatnonzero(np.isfinite(best))[-1:]
    here = int(within[np.argmin(best[within])])
    chosen: list[int] = []
    for (positions, steps), pick in zip(reversed(options), reversed(picks), strict=True):
        chosen.append(int(pick[here]))
        here -= int(steps[np.flatnonzero(positions == pick[here])[0]])
    return chosen[::-1]


def _cell(costs: Sequence[Sequence[float]], budget: float, cells: int) -> tuple[float, int]:
    """Return the cost of a cell and the number of cells: exact where all costs are multiples of one number."""
    flat = [cost for options in costs for cost in options]
    if all(float(cost).is_integer() for cost in flat):
        common = math.gcd(*map(int, flat)) or 1
        if budget / common <= cells:
            return common, int(budget / common + 1e-9)
    return max(budget, 1e-12) / cells, cells


def _useful(
    losses: Sequence[float], costs: Sequence[float], cell: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions that no other candidate beats in both loss and cost, and their costs in cells."""
    loss, cost = np.asarray(losses, dtype=float), np.asarray(costs, dtype=float)
    order = np.lexsort((loss, cost))
    best = np.concatenate(([np.inf], np.minimum.accumulate(loss[order])[:-1]))
    kept = order[loss[order] < best]
    # A hair less than the cost is rounded up, so that sums that just meet the budget do not miss it by rounding.
    return kept, np.ceil(cost[kept] / cell - 1e-9).astype(np.int64)
