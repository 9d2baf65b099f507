"""Facts about a Trainer that several callbacks need."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl


def shards_before_restore(trainer: pl.Trainer) -> bool:
    """Return whether the strategy shards the model before it restores a checkpoint, as FSDP and DeepSpeed do."""
    return trainer.strategy.restore_checkpoint_after_setup


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Return the folder of a run, or ``None`` if the run writes no files. Must be called on every rank.

    The folder is that of a logger with a folder per run (TensorBoard, CSV), else that of the checkpoints. The folder
    that W&B, MLflow and Comet share between all runs is used last, since a second run would overwrite the files there.
    """
    shared = trainer.log_dir  # broadcast, so it is the same on every rank
    own = trainer.strategy.broadcast(trainer.loggers[0].log_dir if trainer.loggers else None)
    folder = own or getattr(trainer.checkpoint_callback, "dirpath", None) or shared or trainer.default_root_dir
    writes_files = bool(trainer.loggers) or trainer.checkpoint_callback is not None
    writes_files = writes_files and not trainer.fast_dev_run  # type: ignore[attr-defined]
    return Path(folder) if writes_files and "://" not in str(folder) else None
