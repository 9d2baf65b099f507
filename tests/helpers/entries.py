"""Exact fits, interrupted and uninterrupted, for the tests of all ways into a Trainer.

As a program, ``entries.py FOLDER...`` resumes in a new process: each folder is a copy of an interrupted run, and its
name is the checkpoint to resume from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.own import OwnModule, make_loader
from pgb_lightning import follow_state_dict
from pgb_lightning.callbacks import ExactResume, PGBCallback

EPOCHS = 4


class ResumableModule(OwnModule):
    """A user's module with dropout, a scheduler, a test step and, unless told otherwise, ``follow_state_dict``."""

    def __init__(self, seed: int = 0, follows: bool = True) -> None:
        super().__init__(seed=seed)
        if follows:
            follow_state_dict(self)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.net(input_ids=batch[0], labels=batch[1]).loss)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_loader() -> DataLoader[Any]:
    return make_loader(shuffle=True)


def make_trainer(
    folder: Path, epochs: int = EPOCHS, callbacks: tuple[L.Callback, ...] = (), **settings: Any
) -> L.Trainer:
    """Make a Trainer that prunes, resumes exactly and saves a checkpoint of every epoch."""
    saver = ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_top_k=-1, save_last=True)
    defaults: dict[str, Any] = {"devices": 1, "logger": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[PGBCallback(), ExactResume(), saver, *callbacks],
        **(defaults | settings),
    )


def find_pgb(trainer: L.Trainer) -> PGBCallback:
    """Return the Trainer's PGBCallback."""
    [found] = [callback for callback in trainer.callbacks if isinstance(callback, PGBCallback)]  # type: ignore[attr-defined]
    return found


def logits(module: OwnModule) -> Tensor:
    module.eval()
    with torch.no_grad():
        return torch.cat([module.net(input_ids=batch[0]).logits for batch in make_loader(16)])


def snapshot(trainer: L.Trainer, module: OwnModule) -> dict[str, Any]:
    """Return everything that two equal fits have in common."""
    plan = find_pgb(trainer).plan
    assert plan is not None
    return {
        "logits": logits(module),
        "weights": module.net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "counters": (trainer.global_step, trainer.current_epoch),
        "plan": plan.to_dict(),
    }


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Compare nested values, tensors bit for bit."""
    assert type(left) is type(right), where
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{where}[{number}]")
    else:
        assert left == right, where


def fit(
    folder: Path, ckpt_path: Any = None, module: ResumableModule | None = None, **settings: Any
) -> tuple[L.Trainer, ResumableModule]:
    """Fit a new module. A resumed fit starts from other weights and random numbers, which must have no effect."""
    L.seed_everything(1)
    torch.rand(7 if ckpt_path else 1)
    module = module or ResumableModule(seed=5 if ckpt_path else 0)
    trainer = make_trainer(folder, **settings)
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path)
    return trainer, module


class UninterruptedFit:
    """A fit of all epochs, its folder and its snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer, self.module = fit(folder)
        self.snapshot = snapshot(self.trainer, self.module)

    def copy(self, target: Path) -> Path:
        """Copy the folder as it was after two epochs."""
        shutil.copytree(self.folder, target)
        rewind(target)
        return target


def rewind(folder: Path) -> None:
    """Bring a folder into the state after two epochs."""
    for epoch in range(2, EPOCHS):
        (folder / f"epoch={epoch}.ckpt").unlink()
    shutil.copy(folder / "epoch=1.ckpt", folder / "last.ckpt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for run in map(Path, sys.argv[1:]):
        torch.save(snapshot(*fit(run, "last" if run.name == "last" else run / run.name)), run / "resumed.pt")
