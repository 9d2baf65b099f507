"""Queries about a Trainer that several callbacks use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor


def shards_before_restore(trainer: pl.Trainer) -> bool:
    """Return whether the strategy shards the model before it restores a checkpoint, as FSDP and DeepSpeed do."""
    return trainer.strategy.restore_checkpoint_after_setup


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Return the folder of a run, or ``None`` if the run writes no files. Must be called on every rank.

    The folder is that of a logger with a folder per run (TensorBoard, CSV), else that of the checkpoints. The folder
    that W&B, MLflow and Comet share between all runs is the last choice, since a second run would overwrite its files.
    """
    shared = trainer.log_dir  # broadcast, so it is the same on every rank
    own = trainer.strategy.broadcast(trainer.loggers[0].log_dir if trainer.loggers else None)
    folder = own or getattr(trainer.checkpoint_callback, "dirpath", None) or shared or trainer.default_root_dir
    writes_files = bool(trainer.loggers) or trainer.checkpoint_callback is not None
    writes_files = writes_files and not trainer.fast_dev_run  # type: ignore[attr-defined]
    return Path(folder) if writes_files and "://" not in str(folder) else None


def logged_since(trainer: pl.Trainer, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that were logged after a copy of ``trainer.callback_metrics`` was made.

    The Trainer keeps each metric until it is logged again, so a value may be from an earlier epoch. A metric that was
    logged again is a new object, even if its value is the same.

    Args:
        trainer: The Trainer.
        before: The earlier copy.
    """
    return {name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name)}


def as_number(value: Any) -> float | None:
    """Return a metric as a number, or ``None`` if it is not a single one."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None
