"""Questions about a Trainer that several callbacks ask."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl


def shards_first(trainer: pl.Trainer) -> bool:
    """Tell strategies that cut the model up before they restore a checkpoint: FSDP, DeepSpeed and their kind."""
    return trainer.strategy.restore_checkpoint_after_setup


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Find the folder of a run, if the run leaves any files at all; to be called on every rank.

    That is the folder of a logger that has one for each run (TensorBoard, CSV), else that of the checkpoints. The
    folder in which W&B, MLflow and Comet keep all their runs is the last resort: a second run would replace the first
    one's files.
    """
    shared = trainer.log_dir  # on every rank: both are broadcast
    own = trainer.strategy.broadcast(trainer.loggers[0].log_dir if trainer.loggers else None)
    folder = own or getattr(trainer.checkpoint_callback, "dirpath", None) or shared or trainer.default_root_dir
    leaves_files = bool(trainer.loggers) or trainer.checkpoint_callback is not None
    leaves_files = leaves_files and not trainer.fast_dev_run  # type: ignore[attr-defined]
    return Path(folder) if leaves_files and "://" not in str(folder) else None
