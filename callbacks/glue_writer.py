"""Write a model's predictions in the file format of the GLUE leaderboard."""

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

#: Maximum of STS-B's scores, which start at 0.
HIGHEST_SCORE = 5.0


class PredictionWriter(FolderWriter):
    """Write the results of ``trainer.predict`` in the format of the GLUE leaderboard: one TSV file per test split.

    A file has the columns ``index`` (the row's number in its split) and ``prediction``: a class name for MNLI, QNLI and
    RTE, a number from 0 to 5 for STS-B, else 0 or 1. It has the leaderboard's file name, such as ``MNLI-mm.tsv``. If
    the data has no test split, ``predict`` runs on the validation rows: a warning is issued, and the file is named
    accordingly, such as ``SST-2-validation.tsv``. Under ``ddp``, the predictions of all processes are gathered in row
    order, each row once.

    Args:
        output_dir: Folder for the files; created if it does not exist.
        overwrite: Whether to replace existing files.

    Raises:
        MisconfigurationException: If the data is not that of a GLUE task, a file exists already, or a prediction is not
            a finite number.

    Example:
        >>> writer = PredictionWriter("runs/sst2/predictions")
        >>> # Trainer(callbacks=[writer]).predict(module, datamodule=GLUEDataModule("sst2", ...))
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the data and the files before predicting."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        data = _data(trainer)
        self.check_not_existing(self._paths(data))
        if not data.test_splits():
            rank_zero_warn(
                f"PredictionWriter: the {data.task.name} data has no test split, so the rows of "
                f"{', '.join(data.prediction_splits())} are predicted. The leaderboard does not accept these files."
            )

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the predictions of all processes and write them."""
        data = _data(trainer)
        splits = data.prediction_splits()
        by_split = predictions if len(splits) > 1 else [predictions]
        for split, path, batches, rows in zip(splits, self._paths(data), by_split, batch_indices, strict=True):
            count = len(data.split(split))
            values = _gather_predictions(trainer, batches, rows, count)
            predicted = int((values != -math.inf).sum())
            if predicted < count:
                rank_zero_warn(
                    f"{path} was not written: only {predicted} of the {count} rows of {split} were predicted."
                )
                continue
            if not torch.isfinite(values).all():
                raise MisconfigurationException(
                    f"PredictionWriter: the prediction for row {int((~torch.isfinite(values)).nonzero()[0])} of "
                    f"{split} is NaN or infinite. The model has diverged; use another checkpoint."
                )
            if trainer.is_global_zero:
                _write_tsv(path, _format(values, data, _class_names(pl_module, data, split)))
            rank_zero_info(f"Wrote {count} predictions of {split} to {path}.")

    def _paths(self, data: GLUEDataModule) -> list[Path]:
        """Return the paths of the files, one for each predicted split."""
        suffix = ".tsv" if data.test_splits() else "-validation.tsv"
        return [self.output_dir / f"{name}{suffix}" for name in data.task.leaderboard]


def _data(trainer: pl.Trainer) -> GLUEDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, GLUEDataModule):
        raise MisconfigurationException(
            f"PredictionWriter needs the data of a GLUEDataModule, not of {type(data).__name__}. Pass one, or leave "
            "the callback out."
        )
    return data


def _gather_predictions(
    trainer: pl.Trainer, batches: Sequence[Any], rows: Sequence[Sequence[int]], count: int
) -> Tensor:
    """Return the predictions of all processes, (count,), in row order; minus infinity for rows without one."""
    device = trainer.strategy.root_device
    values = torch.full((count,), -math.inf, dtype=torch.float32, device=device)
    for batch, indices in zip(batches, rows, strict=True):
        found = batch["predictions"].to(device, values.dtype)
        if "logits" in batch:  # argmax of NaN would return a class.
            finite = batch["logits"].to(device).isfinite().flatten(1).all(1)
            found = torch.where(finite, found, torch.inf)
        # The maximum below must preserve values that are not finite; minus infinity means no prediction.
        values[torch.tensor(indices, device=device)] = found.nan_to_num(torch.inf, torch.inf, torch.inf)
    # The maximum, not the sum: samplers give some rows to two processes, to fill up a batch.
    gathered: Tensor = trainer.strategy.reduce(values, reduce_op="max")
    return gathered.cpu()


def _class_names(pl_module: pl.LightningModule, data: GLUEDataModule, split: str) -> tuple[str, ...]:
    """Return the leaderboard's class names, in the order of the model's ``id2label`` if it has the same names."""
    config = getattr(getattr(pl_module, "model", None), "config", None)
    own = [normalize_class_name(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
    known = {normalize_class_name(name): name for name in data.task.class_names}
    return tuple(known[name] for name in own) if known and set(own) == set(known) else data.class_names(split)


def _format(values: Tensor, data: GLUEDataModule, names: Sequence[str]) -> list[str]:
    """Return predictions as the leaderboard's labels or numbers."""
    if data.task.is_regression:
        return [f"{value:.3f}" for value in values.clamp(0, HIGHEST_SCORE).tolist()]
    return [names[int(value)] if names else str(int(value)) for value in values.tolist()]


def _write_tsv(path: Path, labels: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["index\tprediction", *(f"{index}\t{label}" for index, label in enumerate(labels))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
