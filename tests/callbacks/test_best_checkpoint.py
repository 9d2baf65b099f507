from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers.entries import ResumableModule, assert_equal, snapshot, train_loader
from helpers.fakes import quiet_trainer
from helpers.own import OwnModule, make_loader

from pgb_lightning.callbacks import BestCheckpoint, ExactResume, PGBCallback


class Decreasing(OwnModule):
    """Log a score that decreases with every epoch."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_score", 1.0 - self.current_epoch)


def test_the_best_and_the_last_epoch_are_saved_under_fixed_names(tmp_path: Path) -> None:
    for _ in range(2):
        trainer = quiet_trainer(
            max_epochs=2, enable_checkpointing=True, callbacks=[BestCheckpoint(str(tmp_path), "val_score")]
        )
        trainer.fit(Decreasing(), make_loader(16), make_loader(8))
        assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}
        epochs = {path.stem: torch.load(path, weights_only=True)["epoch"] for path in tmp_path.iterdir()}
        assert epochs == {"best": 0, "last": 1}


class Increasing(ResumableModule):
    """Log a score that increases with every epoch."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_score", float(self.current_epoch))


def test_both_checkpoints_resume_exactly(tmp_path: Path) -> None:
    def fitted(folder: Path, epochs: int, ckpt_path: Path | None = None) -> Any:
        L.seed_everything(3)
        module = Increasing(seed=1 if ckpt_path else 0)
        callbacks = [PGBCallback(), ExactResume(), BestCheckpoint(str(folder), "val_score")]
        trainer = quiet_trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
        trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path)
        return snapshot(trainer, module)

    expected = fitted(tmp_path / "uninterrupted", 4)
    fitted(tmp_path / "run", 2)
    for name in ("best", "last"):
        assert_equal(fitted(tmp_path / "resumed", 4, tmp_path / "run" / f"{name}.ckpt"), expected)
