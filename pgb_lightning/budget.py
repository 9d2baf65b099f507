"""Who gets how many groups, under a target (Algorithm 1, PGB-COMPRESSION, and the search for τ)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, combinations

from torch import Tensor

from pgb_lightning.architectures import EXPENDABLE, MATRICES, SUBLAYERS, Sublayer
from pgb_lightning.config import PruningConfig
from pgb_lightning.grouping import allowed_groups

#: Layer number and matrix kind.
Key = tuple[int, str]
#: The group number of every matrix; 0 means pruned whole.
GroupNumbers = dict[Key, int]

#: How far from the target a plan may be before the user must hear of it (or is refused).
LOUD = 0.01


@dataclass(frozen=True)
class Demand:
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
    def of(cls, importance: Tensor, max_groups: int) -> Demand:
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
        """Return G at a given τ, as :func:`~pgb_lightning.grouping.determine_group_number` would."""
        if threshold >= self.thresholds[0]:
            return 0
        return max(g for g in (1, *self.thresholds) if g <= 1 or threshold >= self.thresholds[g])

    def cost(self, groups: int) -> int:
        """Return C(Ŵ), the parameters left in ``groups`` blocks."""
        return self.rows * self.columns // groups if groups else 0

    def choices(self) -> list[int]:
        """List the group numbers this matrix can have, from whole to pruned."""
        return [1, *sorted(g for g in self.thresholds if g > 1), 0]


Demands = Mapping[Key, Demand]


def allocate(demands: Demands, config: PruningConfig) -> tuple[GroupNumbers, float]:
    """Choose the group number of every matrix for a target.

    A given τ is used literally. Under ``"auto"``, τ is where grouping every matrix by it just meets the
    budget: the largest budget-filling τ at which Algorithm 1 still reaches every feed-forward sublayer. Since
    group numbers are few and matrices large, the last fraction of the target is then met by single steps
    (:func:`settle`).

    Args:
        demands: Every matrix of the encoder.
        config: The target and the paper's hyperparameters.

    Returns:
        The group numbers, and the τ behind them.
    """
    budget = (1 - config.pruning_ratio) * _total(demands)
    if config.importance_threshold != "auto":
        return compress(demands, config.importance_threshold, budget), config.importance_threshold
    candidates = sorted({0.0, *(t for demand in demands.values() for t in demand.thresholds.values())})
    # The cost of grouping everything by τ never rises with τ: find where it crosses the budget.
    low, high = 0, len(candidates) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _grouped_cost(demands, candidates[middle]) > budget else (low, middle)
    threshold = min(candidates[low : high + 1], key=lambda t: abs(_grouped_cost(demands, t) - budget))
    return settle(compress(demands, threshold, budget), demands, budget, config.tolerance), threshold


def compress(demands: Demands, threshold: float, budget: float) -> GroupNumbers:
    """Run Algorithm 1: attention in every layer by τ, then feed-forward sublayers while the budget lasts.

    Args:
        demands: Every matrix of the encoder.
        threshold: τ.
        budget: C, the parameters that may be kept.

    Returns:
        The group numbers; feed-forward sublayers that the budget does not reach are dropped.
    """
    groups: GroupNumbers = dict.fromkeys(demands, 0)
    layers = range(_num_layers(demands))
    for layer in layers:  # lines 2-6
        groups.update(_group_sublayer(demands, layer, "attention", threshold))
    budget -= _cost(demands, groups)

    def score(layer: int) -> float:
        return sum(demands[layer, kind].importance for kind in SUBLAYERS["ffn"])

    for layer in sorted(layers, key=score, reverse=True):  # lines 7-12
        if budget <= 0:
            break
        chosen = _group_sublayer(demands, layer, "ffn", threshold)
        groups.update(chosen)
        budget -= _cost(demands, chosen)
    return groups


def settle(groups: GroupNumbers, demands: Demands, budget: float, tolerance: float) -> GroupNumbers:
    """Bring group numbers within ``tolerance`` of a budget by small steps, each closer than the last.

    A step moves one matrix to the next group number, or drops or revives one sublayer; where no step comes near
    enough, two are taken together. Of those that end equally near, the one is taken that gives up the least
    important weights, or wins the most important.

    Args:
        groups: Where to start.
        demands: Every matrix of the encoder.
        budget: The parameters to keep.
        tolerance: Accepted distance, as a share of all parameters.

    Returns:
        Group numbers at most as far from the budget as ``groups``.
    """
    slack = tolerance * _total(demands)
    while abs(gap := _cost(demands, groups) - budget) > slack:
        singles = [_Step.of(change, groups, demands) for change in _changes(groups, demands)]
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
    def of(cls, change: GroupNumbers, groups: GroupNumbers, demands: Demands) -> _Step:
        cost = _cost(demands, change) - sum(demands[key].cost(groups[key]) for key in change)
        return cls(change, cost, math.copysign(sum(demands[key].importance for key in change), -cost))

    def with_(self, other: _Step) -> _Step:
        return _Step({**self.groups, **other.groups}, self.cost + other.cost, self.loss + other.loss)

    def rank(self, gap: float, slack: float) -> tuple[float, float]:
        """Order steps by where they end, then by what they lose."""
        return max(abs(gap + self.cost), slack), self.loss


def nearest_reachable(shapes: Mapping[Key, tuple[int, int]], config: PruningConfig) -> float:
    """Return the pruning ratio nearest to the target that any choice of group numbers can reach.

    Args:
        shapes: (M, N) of every matrix.
        config: The target and G_max.
    """
    costs = {
        key: [rows * columns // g for g in allowed_groups(rows, columns, config.max_groups)]
        for key, (rows, columns) in shapes.items()
    }
    unit = math.gcd(*(cost for options in costs.values() for cost in options))
    total = sum(rows * columns for rows, columns in shapes.values()) // unit
    reachable = 1  # bit b is set if b units can be kept
    for layer in range(_num_layers(shapes)):
        for kinds in SUBLAYERS.values():
            sums = 1
            for kind in kinds:
                optional = [0] if kind in EXPENDABLE else []
                options = [*optional, *(cost // unit for cost in costs[layer, kind])]
                sums = _union(sums << option for option in options)
            reachable = _union((reachable, *(reachable << b for b in range(sums.bit_length()) if sums >> b & 1)))
    ratios = [1 - b / total for b in range(total + 1) if reachable >> b & 1]
    return min(ratios, key=lambda ratio: abs(ratio - config.pruning_ratio))


def check_reachable(shapes: Mapping[Key, tuple[int, int]], config: PruningConfig) -> None:
    """Refuse a target that no choice of group numbers comes near, before any compute.

    Raises:
        ValueError: The nearest reachable ratio is more than a percentage point away; it is named.
    """
    nearest = nearest_reachable(shapes, config)
    if abs(nearest - config.pruning_ratio) > LOUD:
        raise ValueError(
            f"pruning_ratio={config.pruning_ratio} cannot be reached with max_groups={config.max_groups} on an "
            f"encoder of {_num_layers(shapes)} layer(s): the nearest reachable ratio is {nearest:.4f}; ask for "
            "that, or change max_groups."
        )


def _group_sublayer(demands: Demands, layer: int, sublayer: Sublayer, threshold: float) -> GroupNumbers:
    """Group each matrix of a sublayer by τ; without V, O, W1 or W2 it only adds a constant and is dropped."""
    groups = {(layer, kind): demands[layer, kind].groups_at(threshold) for kind in SUBLAYERS[sublayer]}
    if any(number == 0 and kind not in EXPENDABLE for (_, kind), number in groups.items()):
        return dict.fromkeys(groups, 0)
    return groups


def _changes(groups: GroupNumbers, demands: Demands) -> list[GroupNumbers]:
    """List the single changes that :func:`settle` may make."""
    steps: list[GroupNumbers] = []
    for layer in range(_num_layers(demands)):
        for kinds in SUBLAYERS.values():
            keys = [(layer, kind) for kind in kinds]
            if not any(groups[key] for key in keys):
                steps.append({key: demands[key].choices()[-2] for key in keys})  # revive it at the least cost
                continue
            steps.append(dict.fromkeys(keys, 0))
            for key in keys:
                choices = demands[key].choices()
                if key[1] not in EXPENDABLE:
                    choices.remove(0)  # dropping V, O, W1 or W2 drops the sublayer: that step is above
                place = choices.index(groups[key])
                steps += [{key: choices[near]} for near in (place - 1, place + 1) if 0 <= near < len(choices)]
    return steps


def _grouped_cost(demands: Demands, threshold: float) -> int:
    """Return the cost of grouping every sublayer by τ, without a budget."""
    return sum(
        _cost(demands, _group_sublayer(demands, layer, sublayer, threshold))
        for layer in range(_num_layers(demands))
        for sublayer in SUBLAYERS
    )


def _cost(demands: Demands, groups: GroupNumbers) -> int:
    return sum(demands[key].cost(number) for key, number in groups.items())


def _total(demands: Demands) -> int:
    return sum(demand.cost(1) for demand in demands.values())


def _num_layers(matrices: Mapping[Key, object]) -> int:
    return len(matrices) // len(MATRICES)


def _union(sets: Iterable[int]) -> int:
    """Join sets of small numbers that are kept as the bits of an integer."""
    joined = 0
    for bits in sets:
        joined |= bits
    return joined
