"""Warn about a plan that misses the target."""

from __future__ import annotations

import warnings

from pgb_lightning.config import PruningConfig

#: Name of each budget's unit, for messages.
UNITS = {"parameters": "weights", "flops": "FLOPs", "latency": "time"}
#: Largest distance from the target, as a fraction of the dense model's total, without a warning (or without an error,
#: if the distance is known before calibration).
MAX_GAP = 0.01


def warn_if_missed(removed: float, config: PruningConfig) -> None:
    """Warn if a plan misses the target by more than one percentage point (three for measured time).

    Args:
        removed: The fraction of the budget's unit that the plan removes.
        config: The target.
    """
    # Measured times vary from run to run.
    if abs(removed - config.cut) <= (MAX_GAP if config.budget != "latency" else 3 * MAX_GAP):
        return
    ratio, speedup = config.pruning_ratio, config.target_speedup
    target = f"pruning_ratio={ratio}" if speedup is None else f"target_speedup={speedup}"
    unit = UNITS.get(config.budget, config.budget)
    if config.importance_threshold != "auto":
        reason = 'Set importance_threshold="auto" to meet the target.'
    elif config.budget == "latency":
        reason = "No measured plan is better. The parts of a layer that are not pruned take time at any ratio."
    elif config.search != "shapes":
        reason = "No other group numbers come closer without removing more than the target."
    else:
        reason = "No other shapes of its sublayers come closer without removing more than the target."
    warnings.warn(
        f"{target} is the target, but the plan removes {removed:.4f} of the encoder's {unit}. {reason}", stacklevel=4
    )
