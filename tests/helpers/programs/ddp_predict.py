"""A prediction on any number of CPU processes, run by test_predictions.py."""

from __future__ import annotations

import sys

import lightning as L
import torch

from pgb_lightning.callbacks import PredictionWriter
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification
from pgb_lightning.process_group import close_process_group


class Lengths(TextClassification):
    """Predict the number of tokens of a row: what each row must get is known."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):  # type: ignore[no-untyped-def]
        return {"predictions": batch["attention_mask"].sum(1) / 10}


def main(model: str, folder: str, output_dir: str, devices: int, *flags: str) -> None:
    """Predict and write; with the flag "repeat" the last batches are filled up with rows given twice."""
    torch.set_num_threads(1)
    data = GLUEDataModule("stsb", model, folder, max_length=64, eval_batch_size=4)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        logger=False,
        enable_progress_bar=False,
        callbacks=[PredictionWriter(output_dir)],
        use_distributed_sampler="repeat" not in flags,
    )
    if "repeat" in flags:
        data.predict_dataloader = lambda: _repeating(trainer, data)  # type: ignore[method-assign]
    trainer.predict(Lengths(model, task="stsb"), datamodule=data)


def _repeating(trainer: L.Trainer, data: GLUEDataModule) -> torch.utils.data.DataLoader:
    rows = data.split("validation")
    sampler = torch.utils.data.DistributedSampler(rows, trainer.world_size, trainer.global_rank, shuffle=False)
    return data._loader(rows, 4, sampler=sampler)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
    close_process_group()
