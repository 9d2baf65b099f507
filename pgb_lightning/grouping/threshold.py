"""Search for the threshold τ that meets the pruning ratio, and adjust single group numbers to come closer to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.family import EXPENDABLE, SUBLAYERS
from pgb_lightning.grouping.group_numbers import (
    GroupNumbers,
    Summaries,
    assign_group_numbers,
    cost_of,
    keys_of,
    num_layers,
    total_cost,
)

#: Predicts the increase of the loss for each of several choices of group numbers.
Predict = Callable[[Sequence[GroupNumbers]], Sequence[float]]


def choose_group_numbers(
    summaries: Summaries,
    config: PruningConfig,
    total: int | None = None,
    predict: Predict | None = None,
) -> tuple[GroupNumbers, float]:
    """Choose the group number of every matrix for ``config.pruning_ratio``.

    A given τ is used as is, unless it would remove more than ``pruning_ratio``. With ``"auto"``, the τ with the least
    predicted loss is chosen from those that meet the target (:func:`numbers_by_threshold`).

    Args:
        summaries: The summary of every matrix.
        config: The pruning settings.
        total: Parameters of the dense encoder; those of the matrices by default.
        predict: Predicts the increase of the loss for several choices of group numbers. If omitted, the largest τ is
            chosen, at which grouping every matrix just fills the budget.

    Returns:
        The group numbers and the τ that was used. They do not remove more than ``pruning_ratio + tolerance``.

    Raises:
        ValueError: If a given τ would remove more.
    """
    total = total_cost(summaries) if total is None else total
    budget = (1 - config.pruning_ratio) * total
    if config.importance_threshold != "auto":
        numbers = assign_group_numbers(summaries, config.importance_threshold, budget)
        if (left := cost_of(summaries, numbers)) < budget - config.tolerance * total:
            fitting = (t for t, raw in _by_threshold(summaries, budget) if cost_of(summaries, raw) >= budget)
            largest = max(fitting, default=0.0)
            smaller = f"a value of at most {largest}, " if largest else ""
            raise ValueError(
                f"importance_threshold={config.importance_threshold} removes {1 - left / total:.4f} of the encoder's "
                f"weights, but pruning_ratio={config.pruning_ratio} and tolerance={config.tolerance} were given. Use "
                f'importance_threshold="auto", {smaller}or a larger pruning_ratio.'
            )
        return numbers, config.importance_threshold
    candidates = numbers_by_threshold(summaries, config, total)
    losses = predict([numbers for _, numbers in candidates]) if predict else [-t for t, _ in candidates]
    threshold, numbers = candidates[losses.index(min(losses))]
    return numbers, threshold


def numbers_by_threshold(
    summaries: Summaries, config: PruningConfig, total: int | None = None
) -> list[tuple[float, GroupNumbers]]:
    """List the group numbers that Algorithm 1 chooses for every τ that meets ``config.pruning_ratio``.

    The smallest τ leave attention dense and drop feed-forward sublayers. The largest τ group every matrix, so that
    Algorithm 1 just reaches every feed-forward sublayer. Since there are few group numbers and matrices are large, the
    remaining difference from the budget is reduced by changing single group numbers (:func:`adjust_to_budget`).

    Args:
        summaries: The summary of every matrix.
        config: The pruning settings.
        total: Parameters of the dense encoder; those of the matrices by default.

    Returns:
        The smallest τ of each choice of group numbers, ascending, with the choice. None removes more than
        ``pruning_ratio + tolerance``.
    """
    total = total_cost(summaries) if total is None else total
    budget = (1 - config.pruning_ratio) * total
    candidates = _by_threshold(summaries, budget)
    return [(t, adjust_to_budget(numbers, summaries, budget, config.tolerance)) for t, numbers in candidates]


def _by_threshold(summaries: Summaries, budget: float) -> list[tuple[float, GroupNumbers]]:
    """List the results of Algorithm 1 for all τ, ascending, up to the first that falls below the budget."""
    thresholds = {t for summary in summaries.values() for t in summary.thresholds.values() if not math.isnan(t)}
    found: dict[tuple[int, ...], tuple[float, GroupNumbers]] = {}
    for threshold in sorted({0.0, *thresholds}):
        numbers = assign_group_numbers(summaries, threshold, budget)
        found.setdefault(tuple(numbers.values()), (threshold, numbers))
        if cost_of(summaries, numbers) < budget:
            break
    return list(found.values())


def adjust_to_budget(groups: GroupNumbers, summaries: Summaries, budget: float, tolerance: float) -> GroupNumbers:
    """Change group numbers step by step until their cost is within ``tolerance`` of a budget.

    A step changes one matrix to the next allowed group number, or drops or restores one sublayer. If no single step
    comes within the tolerance, pairs of steps are tried as well. Among steps that end equally near the budget, the one
    that removes the least importance, or restores the most, is taken.

    No step ends below the budget minus the tolerance. If the cost is already below it, every step increases the cost,
    which is always possible unless everything is dense. Therefore, the result is never below it.

    Args:
        groups: The initial group numbers.
        summaries: The summary of every matrix.
        budget: The number of parameters to keep.
        tolerance: Accepted distance from the budget, as a fraction of all parameters.

    Returns:
        Group numbers whose cost is at least the budget minus the tolerance. If the cost of ``groups`` is so as well,
        the result is no farther from the budget.
    """
    slack = tolerance * total_cost(summaries)
    while abs(gap := cost_of(summaries, groups) - budget) > slack:
        singles = [_Step.from_change(change, groups, summaries) for change in _changes(groups, summaries)]
        best = min(singles, key=lambda step: step.rank(gap, slack))
        if abs(gap + best.cost) > slack:
            pairs = (a.combined(b) for a, b in combinations(singles, 2) if not a.groups.keys() & b.groups.keys())
            best = min(chain([best], pairs), key=lambda step: step.rank(gap, slack))
        if _distance(gap + best.cost, slack) >= _distance(gap, slack):
            break
        groups = groups | best.groups
    return groups


def _distance(gap: float, slack: float) -> tuple[float, float]:
    """Return how far a cost is below the budget minus the slack, then how far it is from the budget.

    Args:
        gap: The cost minus the budget.
        slack: The accepted distance.
    """
    return max(-gap - slack, 0.0), max(abs(gap), slack)


@dataclass(frozen=True)
class _Step:
    """A change of group numbers.

    Args:
        groups: The new group numbers of the matrices that change.
        cost: Change of the number of parameters.
        loss: Importance of the matrices that change; negative if the step adds parameters.
    """

    groups: GroupNumbers
    cost: int
    loss: float

    @classmethod
    def from_change(cls, change: GroupNumbers, groups: GroupNumbers, summaries: Summaries) -> _Step:
        """Create the step that changes ``groups`` by ``change``."""
        cost = cost_of(summaries, change) - sum(summaries[key].cost(groups[key]) for key in change)
        return cls(change, cost, math.copysign(sum(summaries[key].importance for key in change), -cost))

    def combined(self, other: _Step) -> _Step:
        """Return the step that does both."""
        return _Step(self.groups | other.groups, self.cost + other.cost, self.loss + other.loss)

    def rank(self, gap: float, slack: float) -> tuple[float, ...]:
        """Return the sort key: the distance from the budget after the step, then the importance lost."""
        # Infinite importances may cancel to NaN, which has no order.
        return *_distance(gap + self.cost, slack), math.inf if math.isnan(self.loss) else self.loss


def _changes(groups: GroupNumbers, summaries: Summaries) -> list[GroupNumbers]:
    """List the single steps that :func:`adjust_to_budget` may take."""
    steps: list[GroupNumbers] = []
    for layer in range(num_layers(summaries)):
        for sublayer in SUBLAYERS:
            keys = keys_of(summaries, layer, sublayer)
            if not any(groups[key] for key in keys):
                # Restore it at the lowest cost.
                steps.append({key: summaries[key].allowed_numbers()[-2] for key in keys})
                continue
            steps.append(dict.fromkeys(keys, 0))
            for key in keys:
                choices = summaries[key].allowed_numbers()
                if key[1] not in EXPENDABLE:
                    choices.remove(0)  # removing any other matrix drops the sublayer, which is the step above
                index = choices.index(groups[key])
                steps += [{key: choices[near]} for near in (index - 1, index + 1) if 0 <= near < len(choices)]
    return steps
