"""Distill on two CPU processes; every rank saves its results."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from helpers.own import OwnModule, make_loader
from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.model_calls import Call


class Counting(Distillation):
    """Count the rows that the teacher is given."""

    rows = 0

    def _answer(self, call: Call) -> Call:
        self.rows += len(call.kwargs["input_ids"])
        return super()._answer(call)


def main(folder: Path) -> None:
    """Fit, and save this rank's weights and teacher."""
    L.seed_everything(1)
    module, callback = OwnModule(), Counting(cache=folder / "cache")
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, PGBCallback(0.5)],
    )
    trainer.fit(module, make_loader(shuffle=True))
    assert callback.teacher is not None
    assert trainer.callback_metrics["train_distillation"] > 0
    wrapped = "training_step" in vars(module)
    results = {
        "state": module.net.state_dict(),
        "teacher": callback.teacher.fingerprint,
        "still_wrapped": wrapped,
        "computed": callback.rows,
    }
    torch.save(results, folder / f"rank{trainer.global_rank}.pt")
