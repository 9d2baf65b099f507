"""Validate and answer on any number of CPU processes: ddp_answers.py MODEL ROWS FOLDER DEVICES."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import torch

from pgb_lightning.callbacks import AnswerWriter
from pgb_lightning.datamodules import SQuADDataModule
from pgb_lightning.modules import QuestionAnswering
from pgb_lightning.process_group import close_process_group


def main(model: str, rows: str, folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    close_process_group()
