"""Validate a SQuAD model and write its answers on any number of CPU processes."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L

from pgb_lightning.callbacks import AnswerWriter
from pgb_lightning.datamodules import SQuADDataModule
from pgb_lightning.modules import QuestionAnswering


def main(folder: Path, model: str, rows: str, devices: int = 2) -> None:
    """Write the answers and the scores."""
    L.seed_everything(0)
    data = SQuADDataModule(model, "2.0", rows, max_length=100, stride=16, eval_batch_size=4)
    module = QuestionAnswering(model, "2.0")
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        logger=False,
        enable_progress_bar=False,
        callbacks=[AnswerWriter(str(folder))],
    )
    [scores] = trainer.validate(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)
    if trainer.is_global_zero:
        (folder / "scores.json").write_text(json.dumps(scores))
