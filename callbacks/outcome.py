"""Say, log and write down what a fit has pruned."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from pgb_lightning.architectures import Encoder
from pgb_lightning.cost import Cost, encoder_cost
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import plan_table, render

PLAN_FILE = "plan.json"


def report(trainer: pl.Trainer, plan: PruningPlan, encoder: Encoder, before: Cost, target: float | None) -> None:
    """Say and log what was achieved, counted from the modules.

    Args:
        trainer: The Trainer; its loggers get four ``pgb/...`` metrics at step 0.
        plan: What was carried out.
        encoder: The encoder as it is now.
        before: What it cost before.
        target: The ratio that was asked for, if one was.
    """
    after = encoder_cost(encoder)
    achieved = {
        "pgb/pruning_ratio": 1 - after.parameters / before.parameters,
        "pgb/flops_ratio": 1 - after.flops / before.flops,
        "pgb/encoder_parameters": float(after.parameters),
        "pgb/encoder_flops": float(after.flops),
    }
    aim = "as planned" if target is None else f"target {target:.2%}"
    rank_zero_info(render(plan_table(plan)))
    rank_zero_info(
        f"PGB removed {achieved['pgb/pruning_ratio']:.2%} of {before.parameters:,} encoder weights ({aim}): "
        f"{after.parameters:,} are left, with {1 - achieved['pgb/flops_ratio']:.2%} of the FLOPs at length 128."
    )
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(achieved, step=0)


def write_plan(trainer: pl.Trainer, plan: PruningPlan) -> None:
    """Write ``plan.json`` into the run's folder, if the run leaves any files at all.

    That is the logger's folder, or ``default_root_dir`` where there is no logger; a plan that is there is replaced.
    """
    folder = trainer.log_dir or trainer.default_root_dir  # on every rank: the first is broadcast
    leaves_files = bool(trainer.loggers) or trainer.checkpoint_callback is not None
    leaves_files = leaves_files and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if trainer.is_global_zero and leaves_files and "://" not in str(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        plan.save(Path(folder) / PLAN_FILE)
        rank_zero_info(f"PGB wrote the plan to {Path(folder) / PLAN_FILE}.")
