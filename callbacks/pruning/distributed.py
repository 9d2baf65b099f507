"""Prune on all processes of a fit together: calibration shared out, one decision, the same weights everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from tqdm.auto import tqdm

from pgb_lightning.calibration.collect import Calibration, calibrate
from pgb_lightning.callbacks.pruning.calibration_data import share_of_rank
from pgb_lightning.callbacks.pruning.training_loss import training_loss, undisturbed
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import carry_out, make_plan
from pgb_lightning.report import PruningNotes


def prune_together(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    encoder: Encoder,
    batches: Iterable[Any],
    config: PruningConfig,
    plan: PruningPlan | None = None,
    notes: PruningNotes | None = None,
) -> PruningPlan:
    """Calibrate, decide and carry out, in place.

    N processes see each N-th batch. Their statistics are added up, rank 0 decides, and the others do as it says; the
    sums behind compensation are added up too, so all processes end with the same weights.

    Args:
        trainer: The Trainer; the module is on its device.
        pl_module: The module.
        encoder: Its dense encoder.
        batches: Calibration batches, the same on all processes; where they are not, each process's share counts.
        config: The settings.
        plan: What to carry out; decided here if not given.
        notes: Where to note what a report wants to know; maps of importance on rank 0 only.

    Returns:
        The plan that was carried out.

    Raises:
        ValueError: Calibration or decision failed, on every process for the same reason. Nothing has changed then.
    """
    strategy = trainer.strategy
    all_reduce = partial(strategy.reduce, reduce_op="sum")
    share = share_of_rank(batches, trainer.global_rank, trainer.world_size)
    with undisturbed(pl_module):
        loss = training_loss(trainer, pl_module)
        tracked = _track(trainer, "PGB calibration", share)
        moments = plan is None and config.needs_moments
        statistics = calibrate(encoder, tracked, loss, all_reduce, config.compensation_tokens, moments)
    plan = plan or _decide_once(trainer, encoder, statistics, config)
    errors = None if notes is None else notes.errors
    if notes is not None and trainer.is_global_zero:
        notes.record_importance(encoder, plan, statistics.fisher)
    carry_out(encoder, plan, statistics, config, all_reduce, partial(_track, trainer, "PGB compensation"), errors)
    return plan


def _decide_once(trainer: pl.Trainer, encoder: Encoder, statistics: Calibration, config: PruningConfig) -> PruningPlan:
    """Make the plan on rank 0; where that fails, fail on all ranks, lest the others wait for it forever."""
    decided: PruningPlan | None = None
    failed: Exception | None = None
    if trainer.is_global_zero:
        try:
            decided = make_plan(encoder, statistics, config)
        except Exception as error:
            failed = error
    decided, problem = trainer.strategy.broadcast((decided, failed and str(failed)))
    if failed is not None:
        raise failed
    if decided is None:
        raise ValueError(problem)
    return decided


def _track(trainer: pl.Trainer, description: str, items: Iterable[Any]) -> Iterable[Any]:
    """Show progress where the Trainer shows progress."""
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    tracked: Iterable[Any] = tqdm(items, desc=description, disable=not shown)
    return tracked
