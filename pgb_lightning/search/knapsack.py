"""The choice of one candidate per sublayer within a budget: a multiple-choice knapsack problem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

#: Number of cells that the largest removal is divided into.
CELLS = 20_000

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def solve_knapsack(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    slack: float,
    cells: int = CELLS,
) -> list[int]:
    """Choose one candidate from each list such that the total loss is minimal and the total cost meets the budget.

    The problem is solved by dynamic programming over the removed cost, relative to the most expensive candidates. The
    table ends at a remaining cost of ``budget - slack``, so no choice can remove more, for any losses.

    Args:
        losses: Predicted loss of each candidate, one list per sublayer. A loss that is not finite is worse than any sum
            of finite losses.
        costs: Cost of each candidate, nonnegative, one list per sublayer.
        budget: The total cost to reach.
        slack: The total cost is between ``budget - slack`` and ``budget`` if possible. Otherwise it is the smallest
            total above the budget. If all choices are cheaper than ``budget - slack``, it is the largest total. Among
            choices with equal loss, the one with the highest cost is taken.
        cells: Resolution of the cost. Costs are exact if they are multiples of one number that fits into the largest
            removal at most ``cells`` times. Otherwise, the cost that a candidate removes is rounded up to a multiple of
            the largest removal divided by ``cells``.

    Returns:
        The index of the chosen candidate in each list.

    Example:
        >>> solve_knapsack([[0.0, 1.0, 4.0], [0.0, 2.0]], [[6, 4, 0], [6, 3]], budget=9, slack=2)
        [0, 1]
    """
    removals = [max(cost) - np.asarray(cost, dtype=float) for cost in costs]
    highest = sum(map(max, costs))
    wanted = highest - budget
    # Costs below a billionth of a billionth are not distinguished, so that a cell is never empty.
    cell, cells = _cell_size(costs, max(wanted + slack, 1e-18 * highest), cells)
    # After i lists, best[c] is the smallest loss at which the first i candidates together remove c cells, and
    # removed[c] is the exact cost that they remove.
    best = np.full(cells + 1, np.inf)
    best[0] = 0.0
    removed = np.zeros(cells + 1)
    picks: list[Integers] = []
    sizes: list[Integers] = []
    for loss, removal in zip(_comparable(losses), removals, strict=True):
        # Subtract a tiny number before rounding up, so that a rounding error adds no cell to an exact multiple.
        steps = np.ceil(np.minimum(removal / cell, cells + 1) - 1e-9).astype(np.int64)
        after, pick = np.full(cells + 1, np.inf), np.full(cells + 1, -1)
        for index in _best_of_each_size(loss, removal, steps):
            step = steps[index]
            if step <= cells:
                reached = best[: cells + 1 - step] + loss[index]
                better = reached < after[step:]
                np.copyto(after[step:], reached, where=better)
                np.copyto(pick[step:], index, where=better)
        here = np.flatnonzero(pick >= 0)
        removed[here] = removed[here - steps[pick[here]]] + removal[pick[here]]
        best = after
        picks.append(pick)
        sizes.append(steps)
    reachable = np.flatnonzero(np.isfinite(best))
    enough = reachable[removed[reachable] >= wanted - 1e-9 * cell]
    place = int(enough[np.argmin(best[enough])] if len(enough) else reachable[np.argmax(removed[reachable])])
    chosen: list[int] = []
    for pick, steps in zip(reversed(picks), reversed(sizes), strict=True):
        chosen.append(int(pick[place]))
        place -= int(steps[chosen[-1]])
    return chosen[::-1]


def _cell_size(costs: Sequence[Sequence[float]], largest: float, cells: int) -> tuple[float, int]:
    """Return the cost of a cell and the number of cells, exact if all costs are multiples of one number.

    Args:
        costs: Cost of each candidate.
        largest: The largest cost that may be removed.
        cells: Maximum number of cells.
    """
    flat = [cost for options in costs for cost in options]
    if all(float(cost).is_integer() for cost in flat):
        common = math.gcd(*map(int, flat)) or 1
        if largest / common <= cells:
            return common, int(largest / common + 1e-9)
    return largest / cells or 1.0, cells


def _comparable(losses: Sequence[Sequence[float]]) -> list[Floats]:
    """Return losses scaled to the range from -1 to 1, with a larger number in place of those that are not finite.

    The fewer such losses a choice has, the smaller is its sum. Losses are divided by a power of two, which does not
    round them.
    """
    arrays = [np.asarray(loss, dtype=float) for loss in losses]
    largest = max(float(np.abs(loss[np.isfinite(loss)]).max(initial=0.0)) for loss in arrays)
    _, exponent = math.frexp(largest)
    worst = 2.0 * len(arrays) + 1
    return [np.where(np.isfinite(loss), np.ldexp(loss, -exponent), worst) for loss in arrays]


def _best_of_each_size(loss: Floats, removal: Floats, steps: Integers) -> Iterator[int]:
    """Yield one candidate for each number of cells, in ascending order: the one with the least loss.

    Among candidates with equal loss, the one that removes less is used.
    """
    order = np.lexsort((removal, loss, steps))
    _, first = np.unique(steps[order], return_index=True)
    yield from map(int, order[first])
