"""Balanced assignment of items to groups of equal size."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(score: Tensor, max_sweeps: int = 200) -> Tensor:
    """Assign each of M items to one of G groups, M/G to each, such that the total score is maximal.

    This is a transportation problem. With optimal dual prices, every item chooses the group with the largest score
    minus price. The prices are updated in turn, each such that its group gets M/G items, until all groups do. If ties
    prevent this, the equivalent assignment problem is solved with SciPy.

    Args:
        score: Score of each item in each group, (M, G).
        max_sweeps: Maximum number of rounds of price updates.

    Returns:
        The item indices of each group, ascending, (G, M/G).
    """
    items, groups = score.shape
    size = items // groups
    if groups == 1:
        return torch.arange(items, device=score.device).view(1, -1)
    price = score.new_zeros(groups)
    numbers = torch.arange(groups, device=score.device)
    for _ in range(max_sweeps):
        before = price.clone()
        for g in range(groups):
            others = numbers[numbers != g]
            margin = score[:, g] - (score[:, others] - price[others]).amax(1)
            # Halfway between the last item that fits into group g and the first that does not.
            price[g] = margin.topk(size + 1).values[-2:].mean()
        chosen = (score - price).argmax(1)
        if (torch.bincount(chosen, minlength=groups) == size).all() or torch.equal(price, before):
            break
    if not (torch.bincount(chosen, minlength=groups) == size).all():
        slots = score.repeat_interleave(size, dim=1).cpu().numpy()
        chosen = torch.as_tensor(linear_sum_assignment(slots, maximize=True)[1] // size, device=score.device)
    return torch.argsort(chosen, stable=True).view(groups, size)
