"""Save the best and the last checkpoint of a run under fixed names."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Save the best epoch as ``best.ckpt`` and the last epoch as ``last.ckpt``, under the same names in every run.

    A second run with the same folder replaces both files.

    Args:
        dirpath: Folder for the two files.
        monitor: Name of the logged score that selects the best epoch, such as ``"val_accuracy"``; higher is better.

    Example:
        >>> BestCheckpoint("runs/sst2/finetune", monitor="val_accuracy").mode
        'max'
    """

    def __init__(self, dirpath: str, monitor: str) -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode="max", enable_version_counter=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last epoch, whether or not it is the best; ``save_last`` saves improvements only.

        The checkpoint is saved when the epoch is over, since only then does resuming from it continue exactly.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.dirpath is not None
            self.last_model_path = str(Path(self.dirpath) / "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)
