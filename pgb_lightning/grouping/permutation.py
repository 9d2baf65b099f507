"""Grouped weight pruning: how many groups, and which weights go into them (Algorithm 2, Eq. 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pgb_lightning.config import Permutation
from pgb_lightning.grouping.group_numbers import allowed_groups


@dataclass(frozen=True)
class Blocks:
    """G blocks of an M x N matrix.

    Args:
        rows: π_r cut into G parts: the rows of each block, (G, M/G), ascending within a block.
        columns: π_c cut into G parts: the columns of each block, (G, N/G), ascending within a block.
    """

    rows: Tensor
    columns: Tensor

    def kept_importance(self, importance: Tensor) -> Tensor:
        """Return I(g) of each block (Eq. 3): the importance that lies in it, shape (G,)."""
        return importance[self.rows.unsqueeze(2), self.columns.unsqueeze(1)].sum((1, 2))


def group(importance: Tensor, num_groups: int, permutation: Permutation, num_permutations: int) -> Blocks:
    """Gather the important weights into G diagonal blocks (Algorithm 2, lines 4-9).

    Args:
        importance: I, of shape (M, N).
        num_groups: G, a common divisor of M and N.
        permutation: ``"greedy"`` for the paper's heuristic, ``"balanced"`` to improve on its result.
        num_permutations: N_perm, the sorts of rows and columns for each block.

    Returns:
        The groups; re-permuted by their indices, they are the block-diagonal matrix of Eq. 2.

    Raises:
        ValueError: G does not divide both M and N, or the permutation needs more than importances.
    """
    if permutation == "compensated":
        raise ValueError(
            "permutation='compensated' needs more than importances: see pgb_lightning.grouping.compensated."
        )
    rows, columns = importance.shape
    if num_groups not in allowed_groups(rows, columns, num_groups):
        raise ValueError(f"num_groups={num_groups} must divide both sides of a {rows} x {columns} matrix.")
    groups = greedy_groups(importance, num_groups, num_permutations)
    return balanced_groups(importance, groups) if permutation == "balanced" else groups


def greedy_groups(importance: Tensor, num_groups: int, num_permutations: int) -> Blocks:
    """Take one block after the other from what is left of the matrix: the paper's heuristic.

    Args:
        importance: I, of shape (M, N).
        num_groups: G, a common divisor of M and N.
        num_permutations: N_perm.

    Example:
        The paper's example (its permutations count from 1):

        >>> example = torch.tensor([[1, 0, 0, 2], [0, 1, 1, 0], [2, 0, 0, 1], [0, 1, 1, 0]])
        >>> groups = greedy_groups(example, num_groups=2, num_permutations=6)
        >>> (groups.rows.flatten() + 1).tolist(), (groups.columns.flatten() + 1).tolist()
        ([1, 3, 2, 4], [1, 4, 2, 3])
    """
    rows = torch.arange(importance.shape[0], device=importance.device)
    columns = torch.arange(importance.shape[1], device=importance.device)
    height, width = len(rows) // num_groups, len(columns) // num_groups
    block_rows, block_columns = [], []
    for _ in range(num_groups):
        rest = importance[rows[:, None], columns]
        top, left = permute(rest, height, width, num_permutations)
        block_rows.append(rows[top])
        block_columns.append(columns[left])
        rows = _without(rows, top)
        columns = _without(columns, left)
    return Blocks(torch.stack(block_rows), torch.stack(block_columns))


def permute(importance: Tensor, height: int, width: int, num_permutations: int) -> tuple[Tensor, Tensor]:
    """Find the rows and columns of one block by sorting them in turn (Eq. 3, PERMUTATION).

    Given the block's columns, the best rows are those with the largest importance over them, and the other
    way round; so the block's importance never falls from one sort to the next.

    Args:
        importance: I of what is left of the matrix, (M', N').
        height: Rows of the block.
        width: Columns of the block.
        num_permutations: N_perm, the most sorts of rows and of columns.

    Returns:
        Rows (height,) and columns (width,) of the block, ascending.
    """
    columns = torch.arange(width, device=importance.device)
    rows = torch.arange(height, device=importance.device)
    for _ in range(num_permutations):
        before = rows, columns
        rows = _largest(importance[:, columns].sum(1), height)
        columns = _largest(importance[rows].sum(0), width)
        if torch.equal(before[0], rows) and torch.equal(before[1], columns):
            break  # sorting once more would change nothing
    return rows, columns


def balanced_groups(importance: Tensor, groups: Blocks, max_rounds: int = 30) -> Blocks:
    """Improve groups by assigning all rows, then all columns, to groups at once.

    The greedy heuristic gives the first block the best rows and the last one what nobody wanted. Here every
    row is scored against the columns of every group and all rows are assigned together so that the kept
    importance is largest with every group full; then the columns; until nothing is gained.

    Args:
        importance: I, of shape (M, N).
        groups: Where to start.
        max_rounds: The most rounds of rows and columns.

    Returns:
        Blocks that keep at least the importance that ``groups`` keep.
    """
    importance = importance.double()
    best, kept = groups, groups.kept_importance(importance).sum()
    for _ in range(max_rounds):
        rows = assign(importance @ _members(best.columns))
        score = importance.T @ _members(rows)
        columns = assign(score)
        gained = score.T.gather(1, columns).sum() - kept
        if gained <= 1e-9 * kept:
            break
        best, kept = Blocks(rows, columns), kept + gained
    return best


def _members(groups: Tensor) -> Tensor:
    """Return which of G x m items are in which of G groups, (G x m, G): ones and zeros."""
    members = torch.zeros(groups.numel(), len(groups), dtype=torch.float64, device=groups.device)
    members[groups.T, torch.arange(len(groups), device=groups.device)] = 1
    return members


def assign(score: Tensor, max_sweeps: int = 200) -> Tensor:
    """Assign each of M items to one of G groups, M/G to each, with the largest total score.

    A transport problem: at the right price for each group, every item just takes the group that is best for
    it after the price. Prices are set in turn, each so that its group is full, until all are. Where ties keep the
    groups from filling, the assignment is solved without prices.

    Args:
        score: Score of each item in each group, (M, G).
        max_sweeps: The most rounds of pricing.

    Returns:
        The items of each group, (G, M/G), ascending.
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
            # Between the last item that group g has room for and the first that it has not.
            price[g] = margin.topk(size + 1).values[-2:].mean()
        chosen = (score - price).argmax(1)
        if (torch.bincount(chosen, minlength=groups) == size).all() or torch.equal(price, before):
            break
    if not (torch.bincount(chosen, minlength=groups) == size).all():
        seats = score.repeat_interleave(size, dim=1).cpu().numpy()
        chosen = torch.as_tensor(linear_sum_assignment(seats, maximize=True)[1] // size, device=score.device)
    return torch.argsort(chosen, stable=True).view(groups, size)


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the positions of the largest values, ascending; the earlier one wins a tie."""
    return torch.argsort(values, descending=True, stable=True)[:count].sort().values


def _without(items: Tensor, positions: Tensor) -> Tensor:
    """Return ``items`` less those at ``positions``."""
    keep = torch.ones(len(items), dtype=torch.bool, device=items.device)
    keep[positions] = False
    return items[keep]
