"""Plans for a target speedup: measure the speedup of the whole pruned encoder and correct the budget by the difference.

The latency table measures single sublayers, whose weights and activations stay in the CPU's cache between calls. Those
of a whole encoder do not, so a plan based on the table alone would miss the target by about 10 percent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from pgb_lightning.config import LatencyRuntime, PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.latency import latency_ratio
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.dense_twin import dense_reference

#: Maximum number of plans that are measured.
MAX_ROUNDS = 5
#: Accepted distance from the target, as a fraction of the target.
TOLERANCE = 0.02


def meet_speedup(
    encoder: Encoder, config: PruningConfig, plan_at: Callable[[float], tuple[PruningPlan, float]]
) -> tuple[PruningPlan, float]:
    """Find the plan whose measured latency is nearest to the target.

    A plan that exceeds the target by more than :data:`TOLERANCE` is returned only if all measured plans do.

    Args:
        encoder: The encoder. It is unchanged afterwards.
        config: The pruning settings: the target, and the batch size, sequence length and runtime of the
            measurement.
        plan_at: Makes a plan that removes a given fraction of the latency according to the table. Returns the plan and
            the fraction that it removes.

    Returns:
        The plan, and the measured fraction of the encoder's latency that it removes.
    """
    target = left = 1 - config.cut
    found: list[tuple[float, PruningPlan]] = []
    for _ in range(MAX_ROUNDS):
        plan, _ = plan_at(1 - left)
        if any(plan.matrices == other.matrices for _, other in found):
            break
        kept = measure_latency_ratio(
            encoder, plan, config.latency_batch_size, config.latency_length, config.latency_runtime
        )
        found.append((kept, plan))
        if abs(kept / target - 1) < TOLERANCE:
            break
        left = min(left * target / kept, 0.999)
    # False sorts before True.
    kept, plan = min(found, key=lambda pair: (pair[0] / target < 1 - TOLERANCE, abs(pair[0] / target - 1)))
    return plan, 1 - kept


def measure_latency_ratio(
    encoder: Encoder, plan: PruningPlan, batch_size: int, length: int, runtime: LatencyRuntime = "torch"
) -> float:
    """Measure the latency of a pruned copy of an encoder as a fraction of the dense encoder's.

    Args:
        encoder: The encoder. It is unchanged afterwards. If it was pruned before, the dense encoder has random weights.
        plan: The plan for the copy.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        runtime: The runtime of the layers.
    """
    pruned = replace(encoder, model=copy.deepcopy(encoder.model))
    apply_plan(pruned, plan)
    return latency_ratio(dense_reference(encoder), pruned, batch_size, length, runtime)
