"""A fit in forked or spawned processes, and what the main one has afterwards: forked_fit.py STRATEGY FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from helpers.entries import Entering, logits, train_loader
from helpers.own import make_loader
from lightning.pytorch.callbacks import ModelCheckpoint

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


def main(strategy: str, folder: Path) -> None:
    """Fit, then predict and validate from the main process, and write down what came of it."""
    torch.set_num_threads(1)
    L.seed_everything(1)
    module = Entering()

    def trainer(*callbacks: L.Callback) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            strategy=strategy,
            devices=2,
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
        )

    fitted = trainer(PGBCallback(), ModelCheckpoint(folder, "end"))
    fitted.fit(module, train_loader(), make_loader(16))
    found = {"best": fitted.checkpoint_callback.best_model_path, "logits": logits(module)}
    resumed = Entering(seed=3)
    third = trainer(PGBCallback(), ModelCheckpoint(folder, "third"))
    third.fit_loop.max_epochs = 3
    third.fit(resumed, train_loader(), make_loader(16), ckpt_path=folder / "end.ckpt")
    torch.save({**found, "resumed": logits(resumed), "step": third.global_step}, folder / "found.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    close_process_group()
