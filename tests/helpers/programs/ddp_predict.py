"""Write GLUE predictions on two CPU processes."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from pgb_lightning.callbacks import PredictionWriter
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification


class TokenCounter(TextClassification):
    """Predict the number of tokens of a row, so that the expected prediction of each row is known."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):  # type: ignore[no-untyped-def]
        return {"predictions": batch["attention_mask"].sum(1) / 10}


def main(folder: Path, model: str, data_dir: str, repeat: bool = False) -> None:
    """Predict and write; with ``repeat`` the sampler fills up the last batches with rows of the other process."""
    data = GLUEDataModule("stsb", model, data_dir, max_length=64, eval_batch_size=4)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        logger=False,
        enable_progress_bar=False,
        callbacks=[PredictionWriter(str(folder))],
        use_distributed_sampler=not repeat,
    )
    if repeat:
        data.predict_dataloader = lambda: _repeating_loader(trainer, data)  # type: ignore[method-assign]
    trainer.predict(TokenCounter(model, task="stsb"), datamodule=data)


def _repeating_loader(trainer: L.Trainer, data: GLUEDataModule) -> torch.utils.data.DataLoader:
    rows = data.split("validation")
    sampler = torch.utils.data.DistributedSampler(rows, trainer.world_size, trainer.global_rank, shuffle=False)
    return data._make_loader(rows, 4, sampler=sampler)
