"""Check that all processes of a fit start from the same state."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from pgb_lightning.callbacks.pruning.strategy import Restored
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.facts import plan_digest


def check_same_start(trainer: pl.Trainer, restored: Restored | None, plan: PruningPlan | None) -> None:
    """Check that all processes restored the same checkpoint, or none, and have the same plan.

    Every node reads its own files. If the checkpoint is missing on one node, Lightning restores it on the other nodes
    only. Without this check, some processes would then prune while the others train.

    Args:
        trainer: The Trainer. Every process must call this function.
        restored: The checkpoint that this process restored, if any.
        plan: The plan that was restored or given, if any.

    Raises:
        MisconfigurationException: If the processes differ; raised on every process.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    checkpoint = "no checkpoint" if restored is None else f"the checkpoint of step {restored.step}"
    start = f"{checkpoint} and {'no plan' if plan is None else f'plan {plan_digest(plan)[:8]}'}"
    starts = [start] * trainer.world_size
    distributed.all_gather_object(starts, start)
    if len(set(starts)) == 1:
        return
    ranks = {start: [str(rank) for rank, other in enumerate(starts) if other == start] for start in starts}
    found = "; ".join(f"{start} on rank {', '.join(ranks[start])}" for start in ranks)
    raise MisconfigurationException(
        f"PGBCallback: the processes do not start from the same state: {found}. Every node reads its own files. Make "
        "the same checkpoint and plan available under the same path on all nodes, for example in a shared folder."
    )
