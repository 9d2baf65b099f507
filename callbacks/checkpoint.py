"""Where a run leaves its weights."""

from __future__ import annotations

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
        super().__init__(
            dirpath, filename="best", monitor=monitor, mode="max", save_last=True, enable_version_counter=False
        )
