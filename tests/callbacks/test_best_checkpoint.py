"""The best and the last checkpoint, which resume exactly, and the weights before training as the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import ResumableModule, assert_equal, snapshot, train_loader
from helpers.fakes import quiet_trainer
from helpers.own import OwnModule, make_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException

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


class Listed(ResumableModule):
    """Log the next of a list of scores after each validation, the first of them before training."""

    def __init__(self, scores: list[float], name: str = "val_score", seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.scores, self.name = iter(scores), name

    def on_validation_epoch_end(self) -> None:
        self.log(self.name, next(self.scores))


@pytest.mark.parametrize(
    ("name", "scores", "steps"),
    [
        ("val_score", [0.9, 0.8, 0.7], 0),
        ("val_score", [0.9, 0.9, 0.9], 0),
        ("val_score", [0.9, 0.8, 1.0], 12),
        ("val_loss", [0.1, 0.2, 0.3], 0),
        ("val_loss", [0.3, 0.2, 0.3], 6),
        ("val_score", [float("nan"), 0.8, 0.7], 6),
    ],
)
def test_the_weights_before_training_can_be_the_best(
    name: str, scores: list[float], steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    module, callback = Listed(scores, name), BestCheckpoint(str(tmp_path), name, before_training=True)
    trainer = quiet_trainer(
        max_epochs=2, enable_checkpointing=True, num_sanity_val_steps=-1, callbacks=[PGBCallback(), callback]
    )
    trainer.fit(module, train_loader(), make_loader(16))
    best = torch.load(tmp_path / "best.ckpt", weights_only=False)
    assert best["global_step"] == steps
    assert any(each["plan"] for key, each in best["callbacks"].items() if key.startswith("PGBCallback"))
    assert ("before training" in caplog.text) is (steps == 0)


@pytest.mark.parametrize(("scores", "steps"), [([0.9, 0.8, 0.7], 0), ([0.9, 0.8, 1.0], 12)])
def test_a_fit_that_resumes_from_the_weights_before_training_keeps_their_score(
    scores: list[float], steps: int, tmp_path: Path
) -> None:
    def fit(module: Listed, ckpt_path: Path | None = None) -> L.Trainer:
        trainer = quiet_trainer(
            max_epochs=2,
            enable_checkpointing=True,
            num_sanity_val_steps=-1,
            callbacks=[PGBCallback(), BestCheckpoint(str(tmp_path), "val_score", before_training=True)],
        )
        trainer.fit(module, train_loader(), make_loader(16), ckpt_path=ckpt_path)
        return trainer

    best = tmp_path / "best.ckpt"
    fit(Listed([0.9, 0.8, 0.7]))
    assert fit(Listed(scores, seed=1), best).global_step == 12
    assert torch.load(best, weights_only=False)["global_step"] == steps


@pytest.mark.parametrize("steps", [0, 2])
def test_the_weights_before_training_must_be_scored_on_all_rows(steps: int, tmp_path: Path) -> None:
    callback = BestCheckpoint(str(tmp_path), "val_score", before_training=True)
    trainer = quiet_trainer(enable_checkpointing=True, num_sanity_val_steps=steps, callbacks=[callback])
    with pytest.raises(MisconfigurationException, match=rf"before_training=True.*num_sanity_val_steps={steps}\b.*=-1"):
        trainer.fit(OwnModule(), make_loader(16), make_loader(8))
