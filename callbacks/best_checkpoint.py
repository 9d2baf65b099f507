"""Where a run leaves its weights."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keep the best epoch as `best.ckpt` and the newest as `last.ckpt`, under the same names in every run.

    A second run into the folder replaces both, so that whoever starts from `best.ckpt` finds the newest run's.

    Args:
        dirpath: Folder for the two files.
        monitor: The logged score that decides, such as "val_accuracy"; more is better.

    Example:
        >>> BestCheckpoint("runs/sst2/finetune", monitor="val_accuracy").mode
        'max'
    """

    def __init__(self, dirpath: str, monitor: str) -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode="max", enable_version_counter=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the newest epoch, whether or not it is the best: `save_last` forgets the others.

        Not before the epoch is over, or resuming from it would not go on exactly.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.dirpath is not None
            self.last_model_path = str(Path(self.dirpath) / "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)
