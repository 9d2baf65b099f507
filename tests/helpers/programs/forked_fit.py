"""Fit and resume in forked and in spawned processes; save the main process's results: forked_fit.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.entries import ResumableModule, logits, train_loader
from helpers.own import make_loader
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


def fit(strategy: str, folder: Path, name: str, epochs: int, module: ResumableModule, ckpt_path: Path | None) -> str:
    """Fit, and return the path of the best checkpoint as the main process knows it."""
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=2,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PGBCallback(), ModelCheckpoint(folder, name)],
    )
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path)
    return str(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]


def main(strategy: str, folder: Path) -> None:
    """Fit for an epoch, and resume for another."""
    folder.mkdir()
    L.seed_everything(1)
    module, resumed = ResumableModule(), ResumableModule(seed=3)
    results = {"best": fit(strategy, folder, "end", 1, module, None), "logits": logits(module)}
    fit(strategy, folder, "resumed", 2, resumed, folder / "end.ckpt")
    results["resumed"] = logits(resumed)
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for strategy in ("ddp_fork", "ddp_notebook", "ddp_spawn"):
        main(strategy, Path(sys.argv[1]) / strategy)
    close_process_group()
