"""Meet a speed-up: measure what a plan reaches as a whole, and correct the budget by what it missed.

A latency table is of sublayers on their own, whose weights and activations stay in the cache from call to call; a whole
encoder's do not, and its plan would fall short by a tenth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.modes import eval_mode
from pgb_lightning.plan import PruningPlan
from pgb_lightning.search.latency_table import layers_runner, measure_fastest
from pgb_lightning.surgery.apply import apply_plan

#: Plans that are measured, at most.
ROUNDS = 5
#: How near a plan must come, as a share of the target.
CLOSE = 0.02


def meet_speedup(
    encoder: Encoder, config: PruningConfig, plan_at: Callable[[float], tuple[PruningPlan, float]]
) -> tuple[PruningPlan, float]:
    """Find the plan whose encoder, measured whole, comes nearest to the share of time that may be kept.

    Args:
        encoder: The dense encoder; it is as it was afterwards.
        config: The target, and the batch that is measured.
        plan_at: Makes a plan that removes a share of the time, and says which share it removes by the table.

    Returns:
        The plan, and the share of the time that it removes.
    """
    target = left = 1 - config.cut
    found: list[tuple[float, PruningPlan]] = []
    for _ in range(ROUNDS):
        plan, _ = plan_at(1 - left)
        if any(plan.matrices == other.matrices for _, other in found):
            break
        kept = measure_kept_time(encoder, plan, config.latency_batch_size, config.latency_length)
        found.append((kept, plan))
        if abs(kept / target - 1) < CLOSE:
            break
        left = min(left * target / kept, 0.999)
    kept, plan = min(found, key=lambda pair: abs(pair[0] / target - 1))
    return plan, 1 - kept


def measure_kept_time(encoder: Encoder, plan: PruningPlan, batch_size: int, length: int) -> float:
    """Measure which share of a dense encoder's time is left once a plan is carried out on a copy of it."""
    pruned = replace(encoder, model=copy.deepcopy(encoder.model))
    apply_plan(pruned, plan)
    with eval_mode(encoder.model), eval_mode(pruned.model):
        dense, left = measure_fastest(
            layers_runner(encoder, batch_size, length), layers_runner(pruned, batch_size, length)
        )
    return left / dense
