"""Report the result of pruning: print and log it, and save the plan."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pgb_lightning.callbacks.trainer_queries import run_folder
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import Cost, encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.latency import measure_encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import plan_table, render
from pgb_lightning.surgery.checks import is_pruned

PLAN_FILE = "plan.json"


def report_pruning(
    trainer: pl.Trainer, plan: PruningPlan, encoder: Encoder, before: Cost, target: float | None
) -> None:
    """Print and log the size of the pruned encoder, counted from its modules.

    Args:
        trainer: The Trainer; its loggers get four ``pgb/...`` metrics at step 0.
        plan: The plan that was applied.
        encoder: The pruned encoder.
        before: The cost of the encoder before pruning.
        target: The requested pruning ratio, if there was one.
    """
    after = encoder_cost(encoder)
    metrics = {
        "pgb/pruning_ratio": 1 - after.parameters / before.parameters,
        "pgb/flops_ratio": 1 - after.flops / before.flops,
        "pgb/encoder_parameters": float(after.parameters),
        "pgb/encoder_flops": float(after.flops),
    }
    goal = "as planned" if target is None else f"target {target:.2%}"
    rank_zero_info(render(plan_table(plan)))
    rank_zero_info(
        f"PGB removed {metrics['pgb/pruning_ratio']:.2%} of {before.parameters:,} encoder weights ({goal}). "
        f"Kept: {after.parameters:,} weights and {1 - metrics['pgb/flops_ratio']:.2%} of the FLOPs at length 128."
    )
    _log(trainer, metrics)


def measure_seconds(encoder: Encoder, config: PruningConfig) -> float:
    """Return the latency of the encoder's layers in seconds per batch, at the configured batch size and length."""
    return measure_encoder(encoder, config.latency_batch_size, config.latency_length)


def report_speedup(trainer: pl.Trainer, config: PruningConfig, speedup: float) -> None:
    """Print and log the measured speedup of the encoder's layers.

    Args:
        trainer: The Trainer; its loggers get ``pgb/speedup`` at step 0.
        config: The settings, with the target.
        speedup: The measured speedup.
    """
    target = 1 / (1 - config.cut)
    size = f"batch {config.latency_batch_size} x length {config.latency_length}"
    rank_zero_info(f"PGB: measured speedup of the encoder's layers at {size}: {speedup:.2f} (target {target:.2f}).")
    if trainer.precision != "32-true":
        rank_zero_warn(
            f"PGB: the speedup was measured in the precision in which the module was built. With precision="
            f"{trainer.precision!r} it may differ; measure the re-finetuned model."
        )
    _log(trainer, {"pgb/speedup": speedup})


def save_plan(trainer: pl.Trainer, plan: PruningPlan) -> None:
    """Write ``plan.json`` to the run's folder, if the run has one. An existing file is replaced."""
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder is None:
        return
    path = folder / PLAN_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
    except OSError as error:  # The fit continues: checkpoints hold the plan too.
        rank_zero_warn(f"PGB could not write the plan to {path}: {error}.")
    else:
        rank_zero_info(f"PGB wrote the plan to {path}.")


def warn_if_dense(pl_module: pl.LightningModule, restored: bool) -> None:
    """Warn if a module that is about to be evaluated has not been pruned."""
    encoders = find_encoders(pl_module)
    if encoders and not any(map(is_pruned, encoders)):
        source = "in this checkpoint" if restored else "in this module"
        rank_zero_warn(f"PGB: the encoder {source} is not pruned. Pass the ckpt_path of a pruned model, or fit first.")


def _log(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=0)
