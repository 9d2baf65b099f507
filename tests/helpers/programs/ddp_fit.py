"""Prune, fit and resume on any number of CPU processes; every rank saves its results."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.own import OwnModule, make_loader, shapes
from pgb_lightning.callbacks import PGBCallback

#: Sizes of the batches on which this rank is calibrated: a global variable, which calibration does not put back.
CALIBRATED: list[int] = []


class CountingModule(OwnModule):
    """Count the samples on which this rank is calibrated."""

    def __init__(self) -> None:
        super().__init__()
        CALIBRATED.clear()

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        if not self.training:
            CALIBRATED.append(len(batch[0]))
        return super().training_step(batch, batch_idx)


def main(folder: Path, devices: int = 2, ckpt_path: Path | None = None) -> None:
    """Fit, or resume, and save this rank's weights, shapes, plan and number of calibration samples."""
    L.seed_everything(1)
    module, pgb = CountingModule(), PGBCallback(0.5)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        max_epochs=2 if ckpt_path else 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pgb, ModelCheckpoint(folder, filename="end")],
    )
    trainer.fit(module, make_loader(), make_loader(16), ckpt_path=ckpt_path)
    assert pgb.plan is not None
    results = {"state": module.net.state_dict(), "shapes": shapes(module.net), "plan": pgb.plan.to_dict()}
    torch.save({**results, "samples": sum(CALIBRATED)}, folder / f"rank{trainer.global_rank}.pt")
