"""Find the threshold τ that meets a target, then adjust_to_budget the last fraction by single steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, combinations

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import EXPENDABLE, SUBLAYERS
from pgb_lightning.grouping.group_numbers import (
    GroupNumbers,
    Summaries,
    assign_group_numbers,
    cost_of,
    group_sublayer,
    num_layers,
    total_cost,
)


def choose_group_numbers(summaries: Summaries, config: PruningConfig) -> tuple[GroupNumbers, float]:
    """Choose the group number of every matrix for a target.

    A given τ is used literally. Under ``"auto"``, τ is where grouping every matrix by it just meets the
    budget: the largest budget-filling τ at which Algorithm 1 still reaches every feed-forward sublayer. Since
    group numbers are few and matrices large, the last fraction of the target is then met by single steps
    (:func:`adjust_to_budget`).

    Args:
        summaries: Every matrix of the encoder.
        config: The target and the paper's hyperparameters.

    Returns:
        The group numbers, and the τ behind them.
    """
    budget = (1 - config.pruning_ratio) * total_cost(summaries)
    if config.importance_threshold != "auto":
        return assign_group_numbers(summaries, config.importance_threshold, budget), config.importance_threshold
    candidates = sorted({0.0, *(t for summary in summaries.values() for t in summary.thresholds.values())})
    # The cost of grouping everything by τ never rises with τ: find where it crosses the budget.
    low, high = 0, len(candidates) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _grouped_cost(summaries, candidates[middle]) > budget else (low, middle)
    threshold = min(candidates[low : high + 1], key=lambda t: abs(_grouped_cost(summaries, t) - budget))
    numbers = assign_group_numbers(summaries, threshold, budget)
    return adjust_to_budget(numbers, summaries, budget, config.tolerance), threshold


def adjust_to_budget(groups: GroupNumbers, summaries: Summaries, budget: float, tolerance: float) -> GroupNumbers:
    """Bring group numbers within ``tolerance`` of a budget by small steps, each closer than the last.

    A step moves one matrix to the next group number, or drops or revives one sublayer; where no step comes near
    enough, two are taken together. Of those that end equally near, the one is taken that gives up the least
    important weights, or wins the most important.

    Args:
        groups: Where to start.
        summaries: Every matrix of the encoder.
        budget: The parameters to keep.
        tolerance: Accepted distance, as a share of all parameters.

    Returns:
        Group numbers at most as far from the budget as ``groups``.
    """
    slack = tolerance * total_cost(summaries)
    while abs(gap := cost_of(summaries, groups) - budget) > slack:
        singles = [_Step.of(change, groups, summaries) for change in _changes(groups, summaries)]
        best = min(singles, key=lambda step: step.rank(gap, slack))
        if abs(gap + best.cost) > slack:
            pairs = (a.with_(b) for a, b in combinations(singles, 2) if not a.groups.keys() & b.groups.keys())
            best = min(chain([best], pairs), key=lambda step: step.rank(gap, slack))
        if abs(gap + best.cost) >= abs(gap):
            break
        groups = {**groups, **best.groups}
    return groups


@dataclass(frozen=True)
class _Step:
    """A change of group numbers, what it costs, and how much importance it touches (negative: wins)."""

    groups: GroupNumbers
    cost: int
    loss: float

    @classmethod
    def of(cls, change: GroupNumbers, groups: GroupNumbers, summaries: Summaries) -> _Step:
        cost = cost_of(summaries, change) - sum(summaries[key].cost(groups[key]) for key in change)
        return cls(change, cost, math.copysign(sum(summaries[key].importance for key in change), -cost))

    def with_(self, other: _Step) -> _Step:
        return _Step({**self.groups, **other.groups}, self.cost + other.cost, self.loss + other.loss)

    def rank(self, gap: float, slack: float) -> tuple[float, float]:
        """Order steps by where they end, then by what they lose."""
        return max(abs(gap + self.cost), slack), self.loss


def _changes(groups: GroupNumbers, summaries: Summaries) -> list[GroupNumbers]:
    """List the single changes that :func:`adjust_to_budget` may make."""
    steps: list[GroupNumbers] = []
    for layer in range(num_layers(summaries)):
        for kinds in SUBLAYERS.values():
            keys = [(layer, kind) for kind in kinds]
            if not any(groups[key] for key in keys):
                steps.append({key: summaries[key].choices()[-2] for key in keys})  # revive it at the least cost
                continue
            steps.append(dict.fromkeys(keys, 0))
            for key in keys:
                choices = summaries[key].choices()
                if key[1] not in EXPENDABLE:
                    choices.remove(0)  # dropping V, O, W1 or W2 drops the sublayer: that step is above
                place = choices.index(groups[key])
                steps += [{key: choices[near]} for near in (place - 1, place + 1) if 0 <= near < len(choices)]
    return steps


def _grouped_cost(summaries: Summaries, threshold: float) -> int:
    """Return the cost of grouping every sublayer by τ, without a budget."""
    return sum(
        cost_of(summaries, group_sublayer(summaries, layer, sublayer, threshold))
        for layer in range(num_layers(summaries))
        for sublayer in SUBLAYERS
    )
