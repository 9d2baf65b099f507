"""Balanced assignment of items to groups of equal size."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(score: Tensor, max_sweeps: int = 200, prices: Tensor | None = None) -> Tensor:
    """Assign each of M items to one of G groups, M/G to each, such that the total score is maximal.

    This is a transportation problem. With optimal dual prices, every item chooses the group with the largest score
    minus price. The prices are updated in turn, each such that its group gets M/G items, until all groups do. If ties
    prevent this, the equivalent assignment problem is solved with SciPy.

    Args:
        score: Score of each item in each group, (M, G).
        max_sweeps: Maximum number of rounds of price updates.
        prices: Initial prices, (G,), on the CPU; updated in place. Prices found for similar scores save rounds.

    Returns:
        The item indices of each group, ascending, (G, M/G).
    """
    items, groups = score.shape
    size, device = items // groups, score.device
    if groups == 1:
        return torch.arange(items, device=device).view(1, -1)
    score = score.cpu()  # many small steps, each of which decides whether to continue
    price = score.new_zeros(groups) if prices is None else prices
    numbers = torch.arange(groups, device=score.device)
    before: Tensor | None = None
    for sweep in range(max_sweeps + 1):
        chosen = (score - price).argmax(1)
        is_balanced = bool((torch.bincount(chosen, minlength=groups) == size).all())
        if is_balanced or sweep == max_sweeps or (before is not None and torch.equal(price, before)):
            break
        before = price.clone()
        for g in range(groups):
            others = numbers[numbers != g]
            margin = score[:, g] - (score[:, others] - price[others]).amax(1)
            # Halfway between the last item that fits into group g and the first that does not.
            price[g] = margin.topk(size + 1).values[-2:].mean()
    if not is_balanced:
        slots = score.repeat_interleave(size, dim=1).numpy()
        chosen = torch.from_numpy(linear_sum_assignment(slots, maximize=True)[1] // size)
    return torch.argsort(chosen, stable=True).view(groups, size).to(device)
