"""Fit with batches of similar lengths on two CPU processes; run by test_ddp_lengths.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification
from pgb_lightning.process_group import close_process_group


class Record(L.Callback):
    """Record the rows of each batch without padding."""

    def __init__(self) -> None:
        self.epochs: list[list[list[list[int]]]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
        pairs = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        self.epochs[-1].append([row[: sum(mask)] for row, mask in pairs])


def main(model: str, folder: str, out: Path) -> None:
    """Fit for two epochs and store the rows of this rank."""
    torch.set_num_threads(1)
    L.seed_everything(0)
    data, record = GLUEDataModule("sst2", model, folder, batch_size=8, group_by_length=True, max_length=32), Record()
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[record],
    )
    trainer.fit(TextClassification(model, task="sst2"), datamodule=data)
    (out / f"rank{trainer.global_rank}.json").write_text(json.dumps(record.epochs))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    close_process_group()
