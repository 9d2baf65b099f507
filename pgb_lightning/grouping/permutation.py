"""Permutation of a matrix into blocks of important weights (Algorithm 2, GROUPED-WEIGHT-PRUNING; Eq. 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgb_lightning.config import Permutation
from pgb_lightning.grouping.assignment import assign
from pgb_lightning.grouping.group_numbers import allowed_groups


@dataclass(frozen=True)
class Blocks:
    """The G blocks g⁽¹⁾, ..., g⁽ᴳ⁾ of a permuted M x N matrix (Eq. 2).

    Args:
        rows: π_r in G parts: the row indices of each block, ascending, (G, M/G).
        columns: π_c in G parts: the column indices of each block, ascending, (G, N/G).
    """

    rows: Tensor
    columns: Tensor

    def kept_importance(self, importance: Tensor) -> Tensor:
        """Return I(g) of each block (Eq. 3): the sum of its weights' importance, (G,)."""
        return importance[self.rows.unsqueeze(2), self.columns.unsqueeze(1)].sum((1, 2))


def group(importance: Tensor, num_groups: int, permutation: Permutation, num_permutations: int) -> Blocks:
    """Arrange the important weights of a matrix into G diagonal blocks (Algorithm 2, lines 4-9).

    Args:
        importance: I, (M, N).
        num_groups: G, a common divisor of M and N.
        permutation: ``"greedy"`` for the paper's heuristic, ``"balanced"`` to improve its result.
        num_permutations: N_perm, the maximum number of row and column sorts for each block.

    Returns:
        The blocks. With rows permuted by π_r and columns by π_c, they form the block-diagonal matrix Ŵ of Eq. 2.

    Raises:
        ValueError: If G does not divide both M and N, or if ``permutation="compensated"``, which requires other
            statistics than importance.
    """
    if permutation == "compensated":
        raise ValueError(
            "permutation='compensated' is not based on importance. Use pgb_lightning.grouping.compensated_groups."
        )
    rows, columns = importance.shape
    if num_groups not in allowed_groups(rows, columns, num_groups):
        raise ValueError(f"num_groups={num_groups} must divide both dimensions of a {rows} x {columns} matrix.")
    groups = greedy_groups(importance, num_groups, num_permutations)
    return balanced_groups(importance, groups) if permutation == "balanced" else groups


def greedy_groups(importance: Tensor, num_groups: int, num_permutations: int) -> Blocks:
    """Form one block after another from the remaining rows and columns (the paper's heuristic, Algorithm 2).

    Args:
        importance: I, (M, N).
        num_groups: G, a common divisor of M and N.
        num_permutations: N_perm, the maximum number of row and column sorts for each block.

    Returns:
        The blocks, in the order in which they were formed.

    Example:
        The example of Section 3.2, with indices starting at 1:

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
    """Find the rows and columns of one block by alternating sorts (PERMUTATION; Eq. 3).

    For fixed columns, the best rows are those with the largest importance summed over the columns, and vice versa.
    The importance of the block therefore never decreases from one sort to the next. This is the paper's
    Algorithm 4 (Appendix A.6), adapted from Zhao and Luk (2019).

    Args:
        importance: I of the remaining rows and columns, (M', N').
        height: Number of rows of the block.
        width: Number of columns of the block.
        num_permutations: N_perm, the maximum number of sorts of rows and of columns.

    Returns:
        The row indices (height,) and column indices (width,) of the block, ascending.
    """
    columns = torch.arange(width, device=importance.device)
    rows = torch.arange(height, device=importance.device)
    for _ in range(num_permutations):
        before = rows, columns
        rows = _largest(importance[:, columns].sum(1), height)
        columns = _largest(importance[rows].sum(0), width)
        if torch.equal(before[0], rows) and torch.equal(before[1], columns):
            break  # converged
    return rows, columns


def balanced_groups(importance: Tensor, groups: Blocks, max_rounds: int = 30) -> Blocks:
    """Improve blocks by alternating balanced assignments of all rows and of all columns (not in the paper).

    The greedy heuristic gives the best rows and columns to the first block and the remaining ones to the last. Here,
    all rows are assigned to blocks jointly for fixed columns, M/G to each, such that the kept importance is maximal,
    then all columns for fixed rows. This repeats until the kept importance no longer increases.

    Args:
        importance: I, (M, N).
        groups: The initial blocks.
        max_rounds: Maximum number of rounds; each assigns rows and columns once.

    Returns:
        Blocks that keep at least as much importance as ``groups``.
    """
    importance = importance.double()
    best, kept = groups, groups.kept_importance(importance).sum()
    row_prices, column_prices = torch.zeros(2, len(groups.rows), dtype=importance.dtype, device="cpu")
    for _ in range(max_rounds):
        rows = assign(importance @ _members(best.columns), prices=row_prices)
        score = importance.T @ _members(rows)
        columns = assign(score, prices=column_prices)
        gained = score.T.gather(1, columns).sum() - kept
        if gained <= 1e-9 * kept:
            break
        best, kept = Blocks(rows, columns), kept + gained
    return best


def _members(groups: Tensor) -> Tensor:
    """Return the 0/1 membership matrix of G·m items in G groups, (G·m, G)."""
    members = torch.zeros(groups.numel(), len(groups), dtype=torch.float64, device=groups.device)
    members[groups.T, torch.arange(len(groups), device=groups.device)] = 1
    return members


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the largest values, ascending; of equal values, the first."""
    return torch.argsort(values, descending=True, stable=True)[:count].sort().values


def _without(items: Tensor, indices: Tensor) -> Tensor:
    """Return ``items`` without those at ``indices``."""
    keep = torch.ones(len(items), dtype=torch.bool, device=items.device)
    keep[indices] = False
    return items[keep]
