"""Group numbers of all matrices for a given τ and budget (Algorithm 1, PGB-COMPRESSION)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pgb_lightning.encoders.family import EXPENDABLE, SUBLAYERS, Sublayer

#: Layer index and matrix kind.
MatrixKey = tuple[int, str]
#: The group number G of every matrix; 0 means that the matrix is removed.
GroupNumbers = dict[MatrixKey, int]


def allowed_groups(rows: int, columns: int, max_groups: int) -> list[int]:
    """List the group numbers that divide an M x N matrix into equal blocks: the common divisors of M and N up to G_max.

    Example:
        >>> allowed_groups(768, 3072, max_groups=6)
        [1, 2, 3, 4, 6]
    """
    return [g for g in range(1, max_groups + 1) if rows % g == 0 and columns % g == 0]


def determine_group_number(rows: int, columns: int, num_important: int, max_groups: int) -> int:
    """Choose G from the number of important weights (DETERMINE-GROUP-NUMBERS; Section 3.2, "Adaptive group numbers").

    Args:
        rows: M.
        columns: N.
        num_important: n_τ, the weights whose importance exceeds τ.
        max_groups: G_max.

    Returns:
        The largest allowed G whose blocks can hold n_τ weights, that is G ≤ M N / n_τ; or 0, which removes the matrix,
        if M N / n_τ > G_max.

    Example:
        >>> determine_group_number(768, 768, num_important=768 * 768 // 3, max_groups=6)
        3
    """
    size = rows * columns
    if num_important * max_groups < size:  # M N / n_τ > G_max, without a division by zero
        return 0
    return max(g for g in allowed_groups(rows, columns, max_groups) if g * num_important <= size)


@dataclass(frozen=True)
class ImportanceSummary:
    """The properties of a matrix's importance that Algorithm 1 uses.

    Args:
        rows: M.
        columns: N.
        importance: The sum of I over the matrix.
        thresholds: For each allowed G > 1, and for 0 (removed), the smallest τ at which DETERMINE-GROUP-NUMBERS can
            choose it.
    """

    rows: int
    columns: int
    importance: float
    thresholds: Mapping[int, float]

    @classmethod
    def from_importance(cls, importance: Tensor, max_groups: int) -> ImportanceSummary:
        """Summarize an importance matrix (M, N) by the order statistics that determine its group number."""
        rows, columns = importance.shape
        ordered, size = importance.flatten().sort().values, importance.numel()

        def smallest_threshold(count: int) -> float:
            """Return the smallest τ that at most ``count`` weights exceed."""
            return float(ordered[size - count - 1])

        thresholds = {g: smallest_threshold(size // g) for g in allowed_groups(rows, columns, max_groups) if g > 1}
        # The matrix is removed if M N / n_τ > G_max, that is if fewer than M N / G_max weights exceed τ.
        thresholds[0] = smallest_threshold(math.ceil(size / max_groups) - 1)
        return cls(rows, columns, float(importance.double().sum()), thresholds)

    def group_number_at(self, threshold: float) -> int:
        """Return the G that :func:`determine_group_number` chooses for a given τ."""
        if threshold >= self.thresholds[0]:
            return 0
        return max(g for g in (1, *self.thresholds) if g <= 1 or threshold >= self.thresholds[g])

    def cost(self, groups: int) -> int:
        """Return C(Ŵ), the number of parameters in ``groups`` blocks."""
        return self.rows * self.columns // groups if groups else 0

    def allowed_numbers(self) -> list[int]:
        """List the group numbers that the matrix can have, from dense (1) to removed (0)."""
        return [1, *sorted(g for g in self.thresholds if g > 1), 0]


Summaries = Mapping[MatrixKey, ImportanceSummary]


def assign_group_numbers(summaries: Summaries, threshold: float, budget: float) -> GroupNumbers:
    """Run Algorithm 1 (PGB-COMPRESSION): group all attention sublayers, then feed-forward sublayers within the budget.

    Args:
        summaries: The summary of every matrix.
        threshold: τ.
        budget: C, the number of parameters to keep.

    Returns:
        The group numbers. Feed-forward sublayers that are not reached before the budget is used up are dropped.
    """
    groups: GroupNumbers = dict.fromkeys(summaries, 0)
    layers = range(num_layers(summaries))
    for layer in layers:  # Algorithm 1, lines 2-6
        groups.update(group_sublayer(summaries, layer, "attention", threshold))
    budget -= cost_of(summaries, groups)

    def score(layer: int) -> float:
        return sum(summaries[key].importance for key in keys_of(summaries, layer, "ffn"))

    for layer in sorted(layers, key=score, reverse=True):  # Algorithm 1, lines 7-12
        if budget <= 0:
            break
        chosen = group_sublayer(summaries, layer, "ffn", threshold)
        groups.update(chosen)
        budget -= cost_of(summaries, chosen)
    return groups


def group_sublayer(summaries: Summaries, layer: int, sublayer: Sublayer, threshold: float) -> GroupNumbers:
    """Choose the group numbers of a sublayer's matrices by τ.

    Without V, O or any matrix of a feed-forward network, a sublayer only adds a constant, so all of its matrices are
    removed.
    """
    groups = {key: summaries[key].group_number_at(threshold) for key in keys_of(summaries, layer, sublayer)}
    if any(number == 0 and kind not in EXPENDABLE for (_, kind), number in groups.items()):
        return dict.fromkeys(groups, 0)
    return groups


def cost_of(summaries: Summaries, groups: GroupNumbers) -> int:
    """Return the number of parameters that remain with some group numbers."""
    return sum(summaries[key].cost(number) for key, number in groups.items())


def total_cost(summaries: Summaries) -> int:
    """Return the number of parameters of all dense matrices."""
    return sum(summary.cost(1) for summary in summaries.values())


def num_layers(matrices: Mapping[MatrixKey, object]) -> int:
    """Return the number of layers."""
    return 1 + max(layer for layer, _ in matrices)


def keys_of(matrices: Mapping[MatrixKey, object], layer: int, sublayer: Sublayer) -> list[MatrixKey]:
    """Return the keys of a sublayer's matrices, in order."""
    return [(layer, kind) for kind in SUBLAYERS[sublayer] if (layer, kind) in matrices]
