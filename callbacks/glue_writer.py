"""Write what a model predicts in the file format of the GLUE leaderboard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from pgb_lightning.callbacks.folder_writer import FolderWriter
from pgb_lightning.datamodules.glue import GLUEDataModule
from pgb_lightning.glue_tasks import normalize_class_name

HIGHEST_SCORE = 5.0
"""STS-B's scores go from 0 to this."""


class PredictionWriter(FolderWriter):
    """Write `trainer.predict`'s results as the GLUE leaderboard takes them: a TSV file a test split.

    A file has the columns `index` (the row's number in its split) and `prediction`: a class name for MNLI, QNLI and
    RTE, a number from 0 to 5 for STS-B, else 0 or 1. It is called what the leaderboard calls it, such as `MNLI-mm.tsv`.
    Where the data have no test split, `predict` runs on the validation rows: that is said in a warning and in the
    file's name, such as `SST-2-validation.tsv`. Under `ddp` the processes' shares are put together in the order of
    the rows, each row once.

    Args:
        output_dir: Folder for the files; made if it is not there.
        overwrite: Whether to replace files that are there already.

    Raises:
        MisconfigurationException: The data are not those of a GLUE task, a file is there already, or a prediction
            is not a finite number.

    Example:
        >>> writer = PredictionWriter("runs/sst2/predictions")
        >>> # Trainer(callbacks=[writer]).predict(module, datamodule=GLUEDataModule("sst2", ...))
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot be written before anything is computed."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        data = _data(trainer)
        self.check_free(self._paths(data))
        if not data.test_splits():
            rank_zero_warn(
                f"{data.task.name} has no test split here: predicting the rows of "
                f"{', '.join(data.prediction_splits())} instead, which is nothing to hand in."
            )

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Bring the processes' predictions together and write them."""
        data = _data(trainer)
        splits = data.prediction_splits()
        by_split = predictions if len(splits) > 1 else [predictions]
        for split, path, batches, rows in zip(splits, self._paths(data), by_split, batch_indices, strict=True):
            count = len(data.split(split))
            values = _in_row_order(trainer, batches, rows, count)
            predicted = int((values != -math.inf).sum())
            if predicted < count:
                rank_zero_warn(
                    f"{path} is not written: only {predicted} of the {count} rows of {split} were predicted."
                )
                continue
            if not torch.isfinite(values).all():
                raise MisconfigurationException(
                    f"PredictionWriter: row {int((~torch.isfinite(values)).nonzero()[0])} of {split} is predicted as "
                    "NaN or infinite; the checkpoint is of a diverged model."
                )
            if trainer.is_global_zero:
                _write(path, _words(values, data, _class_names(pl_module, data, split)))
            rank_zero_info(f"Wrote {count} predictions of {split} to {path}.")

    def _paths(self, data: GLUEDataModule) -> list[Path]:
        """Name the files, one for each split that is predicted."""
        tested = data.test_splits()
        return [
            self.output_dir / (f"{name}.tsv" if tested else f"{name}-validation.tsv") for name in data.task.leaderboard
        ]


def _data(trainer: pl.Trainer) -> GLUEDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, GLUEDataModule):
        raise MisconfigurationException(
            "PredictionWriter writes the GLUE leaderboard's files, so it needs the data of a GLUEDataModule, not of "
            f"{type(data).__name__}; give one, or leave the callback out."
        )
    return data


def _in_row_order(trainer: pl.Trainer, batches: Sequence[Any], rows: Sequence[Sequence[int]], count: int) -> Tensor:
    """Put all processes' predictions at their rows' places; a row that nobody predicted is minus infinity."""
    device = trainer.strategy.root_device
    values = torch.full((count,), -math.inf, dtype=torch.float32, device=device)
    for batch, indices in zip(batches, rows, strict=True):
        values[torch.tensor(indices, device=device)] = batch["predictions"].to(device, values.dtype)
    # The largest, not the sum: a row that two processes were given to fill up a batch is still there once.
    gathered: Tensor = trainer.strategy.reduce(values, reduce_op="max")
    return gathered.cpu()


def _class_names(pl_module: pl.LightningModule, data: GLUEDataModule, split: str) -> tuple[str, ...]:
    """Give the classes the leaderboard's names, in the order that the model learned where it says so."""
    config = getattr(getattr(pl_module, "model", None), "config", None)
    own = [normalize_class_name(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
    known = {normalize_class_name(name): name for name in data.task.class_names}
    return tuple(known[name] for name in own) if known and set(own) == set(known) else data.class_names(split)


def _words(values: Tensor, data: GLUEDataModule, names: Sequence[str]) -> list[str]:
    """Say predictions in the leaderboard's words."""
    if data.task.is_regression:
        return [f"{value:.3f}" for value in values.clamp(0, HIGHEST_SCORE).tolist()]
    return [names[int(value)] if names else str(int(value)) for value in values.tolist()]


def _write(path: Path, words: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["index\tprediction", *(f"{index}\t{word}" for index, word in enumerate(words))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
