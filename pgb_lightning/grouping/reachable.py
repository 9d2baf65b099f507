"""The pruning ratios that group numbers can reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.family import EXPENDABLE, SUBLAYERS
from pgb_lightning.grouping.group_numbers import MatrixKey, allowed_groups, keys_of, num_layers
from pgb_lightning.target_warning import MAX_GAP


def nearest_reachable(
    shapes: Mapping[MatrixKey, tuple[int, int]], config: PruningConfig, dense_parameters: int | None = None
) -> float:
    """Return the pruning ratio nearest to ``config.pruning_ratio`` that some choice of group numbers reaches.

    Ratios above ``pruning_ratio + tolerance`` are excluded, since no plan removes more than that.

    Args:
        shapes: (M, N) of every matrix.
        config: The pruning ratio, the tolerance and G_max.
        dense_parameters: Parameters of the dense encoder; those of the matrices by default.
    """
    costs = {
        key: [rows * columns // g for g in allowed_groups(rows, columns, config.max_groups)]
        for key, (rows, columns) in shapes.items()
    }
    unit = math.gcd(*(cost for options in costs.values() for cost in options))
    total = sum(rows * columns for rows, columns in shapes.values()) // unit
    reachable = 1  # bit b is set if exactly b units of parameters can be kept
    for layer in range(num_layers(shapes)):
        for sublayer in SUBLAYERS:
            sums = 1
            for key in keys_of(shapes, layer, sublayer):
                optional = [0] if key[1] in EXPENDABLE else []
                options = [*optional, *(cost // unit for cost in costs[key])]
                sums = _union(sums << option for option in options)
            reachable = _union((reachable, *(reachable << b for b in range(sums.bit_length()) if sums >> b & 1)))
    whole = total if dense_parameters is None else dense_parameters / unit
    ratios = [1 - b / whole for b in range(total + 1) if reachable >> b & 1]
    limit = max(config.pruning_ratio + config.tolerance, min(ratios))
    ratios = [ratio for ratio in ratios if ratio <= limit]
    return min(ratios, key=lambda ratio: abs(ratio - config.pruning_ratio))


def check_reachable(
    shapes: Mapping[MatrixKey, tuple[int, int]], config: PruningConfig, dense_parameters: int | None = None
) -> None:
    """Raise if no choice of group numbers is near the pruning ratio. Call it before calibration.

    Args:
        shapes: (M, N) of every matrix.
        config: The pruning ratio, the tolerance and G_max.
        dense_parameters: Parameters of the dense encoder; those of the matrices by default.

    Raises:
        ValueError: If the nearest reachable ratio is more than one percentage point away. The message names it.
    """
    nearest = nearest_reachable(shapes, config, dense_parameters)
    if abs(nearest - config.pruning_ratio) > MAX_GAP:
        raise ValueError(
            f"pruning_ratio={config.pruning_ratio} cannot be reached with max_groups={config.max_groups} on an "
            f"encoder of {num_layers(shapes)} layer(s): the nearest reachable ratio that does not remove more is "
            f"{nearest:.4f}. Use it, or change max_groups."
        )


def _union(sets: Iterable[int]) -> int:
    """Return the union of sets of small integers, each represented by the bits of an integer."""
    joined = 0
    for bits in sets:
        joined |= bits
    return joined
