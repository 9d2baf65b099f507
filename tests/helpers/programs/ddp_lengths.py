"""Fit with batches of similar lengths on two CPU processes; every rank saves the rows of its batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification


class BatchRecorder(L.Callback):
    """Record the rows of each batch without padding."""

    def __init__(self) -> None:
        self.epochs: list[list[list[list[int]]]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
        pairs = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        self.epochs[-1].append([row[: sum(mask)] for row, mask in pairs])


def main(folder: Path, model: str, data_dir: str) -> None:
    """Fit for two epochs and store the rows of this rank."""
    L.seed_everything(0)
    data = GLUEDataModule("sst2", model, data_dir, batch_size=8, group_by_length=True, max_length=32)
    recorder = BatchRecorder()
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[recorder],
    )
    trainer.fit(TextClassification(model, task="sst2"), datamodule=data)
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(recorder.epochs))
