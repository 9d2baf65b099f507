"""Which pruning ratios equal groups can reach at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import EXPENDABLE, SUBLAYERS
from pgb_lightning.grouping.group_numbers import MatrixKey, allowed_groups, num_layers

#: How far from the target a plan may be before the user must hear of it (or is refused).
MAX_GAP = 0.01


def nearest_reachable(shapes: Mapping[MatrixKey, tuple[int, int]], config: PruningConfig) -> float:
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
    for layer in range(num_layers(shapes)):
        for kinds in SUBLAYERS.values():
            sums = 1
            for kind in kinds:
                optional = [0] if kind in EXPENDABLE else []
                options = [*optional, *(cost // unit for cost in costs[layer, kind])]
                sums = _union(sums << option for option in options)
            reachable = _union((reachable, *(reachable << b for b in range(sums.bit_length()) if sums >> b & 1)))
    ratios = [1 - b / total for b in range(total + 1) if reachable >> b & 1]
    return min(ratios, key=lambda ratio: abs(ratio - config.pruning_ratio))


def check_reachable(shapes: Mapping[MatrixKey, tuple[int, int]], config: PruningConfig) -> None:
    """Refuse a target that no choice of group numbers comes near, before any compute.

    Raises:
        ValueError: The nearest reachable ratio is more than a percentage point away; it is named.
    """
    nearest = nearest_reachable(shapes, config)
    if abs(nearest - config.pruning_ratio) > MAX_GAP:
        raise ValueError(
            f"pruning_ratio={config.pruning_ratio} cannot be reached with max_groups={config.max_groups} on an "
            f"encoder of {num_layers(shapes)} layer(s): the nearest reachable ratio is {nearest:.4f}; ask for "
            "that, or change max_groups."
        )


def _union(sets: Iterable[int]) -> int:
    """Join sets of small numbers that are kept as the bits of an integer."""
    joined = 0
    for bits in sets:
        joined |= bits
    return joined
