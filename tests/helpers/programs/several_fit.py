"""Prune two encoders on two processes, under ddp and forked: several_fit.py FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.own import make_loader
from helpers.several import PASSAGE, BiEncoder, embeddings
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


def fit(strategy: str, folder: Path) -> tuple[L.Trainer, BiEncoder, list[PGBCallback]]:
    """Prune both encoders in one fit."""
    folder.mkdir(exist_ok=True)
    L.seed_everything(1)
    module, callbacks = BiEncoder(), [PGBCallback(0.5, encoder="query"), PGBCallback(0.7, encoder=PASSAGE)]
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=2,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, ModelCheckpoint(folder, "end")],
    )
    trainer.fit(module, make_loader(), make_loader(16))
    return trainer, module, callbacks


def main(root: Path) -> None:
    """Fit in forked processes first, since a process group cannot be forked."""
    torch.set_num_threads(1)
    if "LOCAL_RANK" not in os.environ:  # the main process
        torch.save(embeddings(fit("ddp_fork", root / "ddp_fork")[1]), root / "forked.pt")
    trainer, module, callbacks = fit("ddp", root / "ddp")
    plans = [each.plan.to_dict() for each in callbacks if each.plan]
    torch.save({"state": module.state_dict(), "plans": plans}, root / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    close_process_group()
