"""Distill on two CPU processes; every rank saves its results."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from helpers.own import OwnModule, make_loader
from pgb_lightning.callbacks import Distillation, PGBCallback


def main(folder: Path) -> None:
    """Fit, and save this rank's weights and teacher."""
    L.seed_everything(1)
    module, callback = OwnModule(), Distillation()
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, PGBCallback(0.5)],
    )
    trainer.fit(module, make_loader())
    assert callback.teacher is not None
    assert trainer.callback_metrics["train_distillation"] > 0
    wrapped = "training_step" in vars(module)
    results = {"state": module.net.state_dict(), "teacher": callback.teacher.fingerprint, "still_wrapped": wrapped}
    torch.save(results, folder / f"rank{trainer.global_rank}.pt")
