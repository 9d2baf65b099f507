"""Prune on all processes of a fit: sharded calibration, one plan, and the same weights everywhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tqdm.auto import tqdm

from pgb_lightning.calibration.collect import Calibration, calibrate
from pgb_lightning.calibration.fisher import ORDER, FisherLoss
from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.callbacks.pruning.calibration_data import shard_batches
from pgb_lightning.callbacks.pruning.snapshot import Snapshot
from pgb_lightning.callbacks.pruning.training_loss import (
    StepError,
    batch_preparation,
    training_loss,
    without_side_effects,
)
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import carry_out, make_plan, record_fisher
from pgb_lightning.report import PruningNotes


def prune_distributed(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    encoder: Encoder,
    batches: Callable[[Snapshot], Generator[Any, None, None]],
    config: PruningConfig,
    plan: PruningPlan | None = None,
    notes: PruningNotes | None = None,
) -> PruningPlan:
    """Calibrate, make the plan and apply it in place.

    Each of N processes is calibrated on every N-th batch. The statistics are summed over all processes, and rank 0
    makes the plan and broadcasts it. The sums for compensation are reduced as well, so all processes end up with the
    same weights.

    Args:
        trainer: The Trainer; the module is on its device.
        pl_module: The module.
        encoder: The module's dense encoder.
        batches: Function that reads the calibration batches, the same on all processes, and adds the objects that it
            reads from to a snapshot. If the batches differ, each process uses its shard of its own batches.
        config: The settings.
        plan: The plan to apply; made here if not given.
        notes: Record for a report, filled if given; importance maps on rank 0 only.

    Returns:
        The plan that was applied.

    Raises:
        ValueError: If calibration or planning failed; raised on every process. The encoder is unchanged.
    """
    all_reduce = partial(trainer.strategy.reduce, reduce_op="sum")
    with without_side_effects(pl_module) as snapshot, closing(batches(snapshot)) as read:
        loss = FisherLoss(
            pl_module,
            encoder,
            training_loss(pl_module),
            config.fisher,
            config.fisher_temperature,
            failures=(StepError,),
        )
        prepare = batch_preparation(trainer, pl_module)
        # Random draws depend on the number of the batch among those of all processes.
        tracked = _show_progress(trainer, "PGB calibration", _own_shard(trainer, enumerate(read)))
        statistics = calibrate(
            encoder,
            tracked,
            lambda numbered: loss(prepare(numbered[1]), numbered[0]),
            all_reduce,
            config.compensation_tokens,
            moments=plan is None and config.needs_moments,
            warn=rank_zero_warn,
            fisher_samples=config.fisher_samples,
        )
    if plan is None:
        _check_same_gradients(loss, all_reduce, trainer.strategy.root_device)
        tell = rank_zero_warn if loss.reason else rank_zero_info
        tell(f"PGB: {loss.describe()}.")
        plan = record_fisher(_make_plan_on_rank_zero(trainer, encoder, statistics, config), loss)
    errors = None if notes is None else notes.errors
    if notes is not None and trainer.is_global_zero:
        notes.record_importance(encoder, plan, statistics.fisher)
    track = partial(_show_progress, trainer, "PGB compensation")
    carry_out(encoder, plan, statistics, config, all_reduce, track, errors)
    return plan


def _own_shard(trainer: pl.Trainer, batches: Iterable[Any]) -> Iterable[Any]:
    """Return this process's shard of the batches. All shards have the same length, even if the batches differ."""
    if trainer.world_size == 1:
        return batches
    shard: list[Any] = []
    failure: Exception | None = None
    try:
        shard += shard_batches(batches, trainer.global_rank, trainer.world_size)
    except Exception as error:
        failure = error
    length = torch.tensor(float(-1 if failure else len(shard)), device=trainer.strategy.root_device)
    shortest = int(trainer.strategy.reduce(length, reduce_op="min"))
    if failure is not None:
        raise failure
    if shortest < 0:
        raise ValueError("the calibration data could not be read on another process. See the error raised there.")
    return shard[:shortest]


def _check_same_gradients(loss: FisherLoss, all_reduce: AllReduce, device: torch.device) -> None:
    """Check that ``fisher="auto"`` chose the same loss on all processes, except those that skipped all batches."""
    used = [float(loss.used == fisher) for fisher in ORDER]
    counts = all_reduce(torch.tensor(used, device=device)).tolist()
    found = [fisher for fisher, count in zip(ORDER, counts, strict=True) if count]
    if len(found) > 1:
        raise ValueError(
            f"fisher='auto' found labels on some processes only: their batches need {' and '.join(map(repr, found))}. "
            f"Set fisher={found[-1]!r} for all batches, or calibrate on data of one kind (calibration=)."
        )


def _make_plan_on_rank_zero(
    trainer: pl.Trainer, encoder: Encoder, statistics: Calibration, config: PruningConfig
) -> PruningPlan:
    """Make the plan on rank 0 and broadcast it. An error is raised on all ranks, so that none waits forever."""
    plan: PruningPlan | None = None
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            plan = make_plan(encoder, statistics, config)
        except Exception as error:
            failure = error
    plan, message = trainer.strategy.broadcast((plan, failure and str(failure)))
    if failure is not None:
        raise failure
    if plan is None:
        raise ValueError(message)
    return plan


def _show_progress(trainer: pl.Trainer, description: str, items: Iterable[Any]) -> Iterable[Any]:
    """Wrap an iterable in a progress bar if the Trainer shows progress bars."""
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    tracked: Iterable[Any] = tqdm(items, desc=description, disable=not shown)
    return tracked
