"""Who gets how many groups, under a target (Algorithm 1, PGB-COMPRESSION, and the search for τ)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pgb_lightning.encoders.base import EXPENDABLE, MATRICES, SUBLAYERS, Sublayer

#: Layer number and matrix kind.
MatrixKey = tuple[int, str]
#: The group number of every matrix; 0 means pruned whole.
GroupNumbers = dict[MatrixKey, int]


def allowed_groups(rows: int, columns: int, max_groups: int) -> list[int]:
    """List the group numbers that cut an M x N matrix into equal blocks: common divisors up to G_max.

    Example:
        >>> allowed_groups(768, 3072, max_groups=6)
        [1, 2, 3, 4, 6]
    """
    return [g for g in range(1, max_groups + 1) if rows % g == 0 and columns % g == 0]


def determine_group_number(rows: int, columns: int, num_important: int, max_groups: int) -> int:
    """Choose G from the number of important weights (Section 3.2, "Adaptive group numbers").

    Args:
        rows: M.
        columns: N.
        num_important: n_τ, the weights whose importance exceeds τ.
        max_groups: G_max.

    Returns:
        The largest number of equal groups that still has room for n_τ weights, or 0 if the matrix would need
        more than G_max groups and is pruned whole.

    Example:
        >>> determine_group_number(768, 768, num_important=768 * 768 // 3, max_groups=6)
        3
    """
    size = rows * columns
    if num_important * max_groups < size:  # M N / n_τ > G_max, safe for n_τ = 0
        return 0
    return max(g for g in allowed_groups(rows, columns, max_groups) if g * num_important <= size)


@dataclass(frozen=True)
class ImportanceSummary:
    """What Algorithm 1 needs to know of one matrix.

    Args:
        rows: M.
        columns: N.
        importance: I summed over the whole matrix.
        thresholds: For each allowed G above 1, and for 0 (pruned whole), the smallest τ at which
            DETERMINE-GROUP-NUMBERS may choose it.
    """

    rows: int
    columns: int
    importance: float
    thresholds: Mapping[int, float]

    @classmethod
    def from_importance(cls, importance: Tensor, max_groups: int) -> ImportanceSummary:
        """Summarise an importance matrix (M, N) by the few order statistics that decide its group number."""
        rows, columns = importance.shape
        ordered, size = importance.flatten().sort().values, importance.numel()

        def quiet_above(count: int) -> float:
            """Return the smallest τ that at most ``count`` weights exceed."""
            return float(ordered[size - count - 1])

        thresholds = {g: quiet_above(size // g) for g in allowed_groups(rows, columns, max_groups) if g > 1}
        # Pruned whole if M N / n_τ > G_max: fewer than M N / G_max weights exceed τ.
        thresholds[0] = quiet_above(math.ceil(size / max_groups) - 1)
        return cls(rows, columns, float(importance.double().sum()), thresholds)

    def groups_at(self, threshold: float) -> int:
        """Return G at a given τ, as :func:`~pgb_lightning.grouping.group_numbers.determine_group_number` would."""
        if threshold >= self.thresholds[0]:
            return 0
        return max(g for g in (1, *self.thresholds) if g <= 1 or threshold >= self.thresholds[g])

    def cost(self, groups: int) -> int:
        """Return C(Ŵ), the parameters left in ``groups`` blocks."""
        return self.rows * self.columns // groups if groups else 0

    def choices(self) -> list[int]:
        """List the group numbers this matrix can have, from whole to pruned."""
        return [1, *sorted(g for g in self.thresholds if g > 1), 0]


Summaries = Mapping[MatrixKey, ImportanceSummary]


def assign_group_numbers(summaries: Summaries, threshold: float, budget: float) -> GroupNumbers:
    """Run Algorithm 1: attention in every layer by τ, then feed-forward sublayers while the budget lasts.

    Args:
        summaries: Every matrix of the encoder.
        threshold: τ.
        budget: C, the parameters that may be kept.

    Returns:
        The group numbers; feed-forward sublayers that the budget does not reach are dropped.
    """
    groups: GroupNumbers = dict.fromkeys(summaries, 0)
    layers = range(num_layers(summaries))
    for layer in layers:  # lines 2-6
        groups.update(group_sublayer(summaries, layer, "attention", threshold))
    budget -= cost_of(summaries, groups)

    def score(layer: int) -> float:
        return sum(summaries[layer, kind].importance for kind in SUBLAYERS["ffn"])

    for layer in sorted(layers, key=score, reverse=True):  # lines 7-12
        if budget <= 0:
            break
        chosen = group_sublayer(summaries, layer, "ffn", threshold)
        groups.update(chosen)
        budget -= cost_of(summaries, chosen)
    return groups


def group_sublayer(summaries: Summaries, layer: int, sublayer: Sublayer, threshold: float) -> GroupNumbers:
    """Group each matrix of a sublayer by τ; without V, O, W1 or W2 it only adds a constant and is dropped."""
    groups = {(layer, kind): summaries[layer, kind].groups_at(threshold) for kind in SUBLAYERS[sublayer]}
    if any(number == 0 and kind not in EXPENDABLE for (_, kind), number in groups.items()):
        return dict.fromkeys(groups, 0)
    return groups


def cost_of(summaries: Summaries, groups: GroupNumbers) -> int:
    """Return the parameters that some group numbers keep."""
    return sum(summaries[key].cost(number) for key, number in groups.items())


def total_cost(summaries: Summaries) -> int:
    """Return the parameters of all matrices together."""
    return sum(summary.cost(1) for summary in summaries.values())


def num_layers(matrices: Mapping[MatrixKey, object]) -> int:
    """Return the number of layers that the matrices belong to."""
    return len(matrices) // len(MATRICES)
