"""What the tests of entries share, and a script that enters in a new process: entries.py WHAT FOLDER [DEVICES]."""

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
from pgb_lightning.process_group import close_process_group

EPOCHS = 4


class Entering(OwnModule):
    """A user's module with dropout, a scheduler and a test step, and (or not) the one line that loading needs."""

    def __init__(self, seed: int = 0, line: bool = True) -> None:
        super().__init__(seed=seed)
        if line:
            follow_state_dict(self)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.net(input_ids=batch[0], labels=batch[1]).loss)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_loader() -> DataLoader[Any]:
    return make_loader(shuffle=True)


def make_trainer(folder: Path, epochs: int = EPOCHS, **settings: Any) -> L.Trainer:
    """Make a Trainer that prunes, resumes exactly and keeps a checkpoint of every epoch."""
    keep = ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_top_k=-1, save_last=True)
    extra = settings.pop("callbacks", [])
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": epochs,
            "default_root_dir": folder,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [PGBCallback(), ExactResume(), keep, *extra],
            **settings,
        }
    )


def pgb_of(trainer: L.Trainer) -> PGBCallback:
    [found] = [callback for callback in trainer.callbacks if isinstance(callback, PGBCallback)]  # type: ignore[attr-defined]
    return found


def logits(module: OwnModule) -> Tensor:
    module.eval()
    with torch.no_grad():
        return torch.cat([module.net(input_ids=batch[0]).logits for batch in make_loader(16)])


def snapshot(trainer: L.Trainer, module: OwnModule) -> dict[str, Any]:
    """Everything that two equal fits have in common."""
    plan = pgb_of(trainer).plan
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
    folder: Path, ckpt_path: Any = None, module: Entering | None = None, **settings: Any
) -> tuple[L.Trainer, Entering]:
    """Fit a fresh module; a resumed one starts from other weights and random numbers, which must not matter."""
    L.seed_everything(1)
    torch.rand(7 if ckpt_path else 1)
    module = module or Entering(seed=5 if ckpt_path else 0)
    trainer = make_trainer(folder, **settings)
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path)
    return trainer, module


class Whole:
    """A fit that nothing interrupted, and what it left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer, self.module = fit(folder)
        self.snapshot = snapshot(self.trainer, self.module)

    def copy(self, target: Path) -> Path:
        """Copy the folder, as after two epochs."""
        shutil.copytree(self.folder, target)
        forget(target)
        return target


def forget(folder: Path) -> None:
    """Leave a folder as a crash after two epochs would have left it."""
    for epoch in range(2, EPOCHS):
        (folder / f"epoch={epoch}.ckpt").unlink()
    shutil.copy(folder / "epoch=1.ckpt", folder / "last.ckpt")


def main(what: str, folder: Path, devices: int = 1) -> None:
    """Enter with ``ckpt_path`` (or "fresh") and write down what came of it."""
    torch.set_num_threads(1)
    start = {"fresh": None, "last": "last"}.get(what, folder / what)
    trainer, module = fit(folder, start, devices=devices, strategy="ddp" if devices > 1 else "auto")
    torch.save(snapshot(trainer, module), folder / f"new-{what}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
    close_process_group()
