"""A distilled fit on two CPU processes, run by test_distillation_callback.py."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from helpers.own import OwnModule, make_loader

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.process_group import close_process_group


def main(folder: Path) -> None:
    """Fit, and store what this rank holds."""
    torch.set_num_threads(1)
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
    left = "training_step" in vars(module)
    found = {"state": module.net.state_dict(), "teacher": callback.teacher.fingerprint, "left": left}
    torch.save(found, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    close_process_group()
