"""Say, log and write down what a fit has pruned."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pgb_lightning.callbacks.trainer_queries import run_folder
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import Cost, encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import plan_table, render
from pgb_lightning.search.latency_table import measure_encoder
from pgb_lightning.surgery.checks import is_pruned

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


def time_encoder(encoder: Encoder, config: PruningConfig) -> float:
    """Measure the encoder's layers, in seconds a batch of the size that is budgeted for."""
    return measure_encoder(encoder, config.latency_batch_size, config.latency_length)


def report_speed(trainer: pl.Trainer, config: PruningConfig, speedup: float) -> None:
    """Say and log how many times faster the encoder's layers have become, as measured.

    Args:
        trainer: The Trainer; its loggers get ``pgb/speedup`` at step 0.
        config: What was asked for.
        speedup: What was measured.
    """
    target = 1 / (1 - config.cut)
    size = f"batch {config.latency_batch_size} x length {config.latency_length}"
    rank_zero_info(f"PGB: the encoder's layers are {speedup:.2f} times faster at {size} (target {target:.2f}).")
    if trainer.precision != "32-true":
        rank_zero_warn(
            "PGB: that was measured in the precision that the module was built in; with "
            f"precision={trainer.precision!r} it may be another: measure what comes of it."
        )
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics({"pgb/speedup": speedup}, step=0)


def write_plan(trainer: pl.Trainer, plan: PruningPlan) -> None:
    """Write ``plan.json`` into the run's folder, if it has one; replace one that is there."""
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder is None:
        return
    path = folder / PLAN_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
    except OSError as error:  # no reason to lose a pruned model, whose checkpoints hold the plan too
        rank_zero_warn(f"PGB could not write the plan to {path}: {error}.")
    else:
        rank_zero_info(f"PGB wrote the plan to {path}.")


def mention_dense(pl_module: pl.LightningModule, restored: bool) -> None:
    """Say that a model is evaluated as it was before pruning, which is seldom meant."""
    encoders = find_encoders(pl_module)
    if encoders and not any(map(is_pruned, encoders)):
        where = "in this checkpoint" if restored else "in this module"
        rank_zero_warn(f"PGB: the encoder {where} is not pruned; give the ckpt_path of a pruned model, or fit first.")
