"""The Trainer of the experiments: one device, clipped gradients, and no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator

from pgb_lightning.experiments.training import make_trainer, save_weights


def test_it_uses_one_device_and_writes_nothing() -> None:
    trainer = make_trainer(3, accelerator="cpu", limit_val_batches=0)
    assert (trainer.max_epochs, trainer.num_devices, trainer.limit_val_batches) == (3, 1, 0)
    assert trainer.gradient_clip_val == 1.0
    assert (trainer.loggers, trainer.checkpoint_callbacks) == ([], [])


def test_an_apple_gpu_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    assert isinstance(make_trainer(1).accelerator, CPUAccelerator)


def test_fixed_settings_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="devices"):
        make_trainer(1, devices=2)


def test_an_interrupted_save_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    class Interrupted:
        def save_checkpoint(self, path: Path, weights_only: bool) -> None:
            assert weights_only
            path.write_text("a part")
            raise KeyboardInterrupt

    trainer: Any = Interrupted()
    path = tmp_path / "dense.ckpt"
    path.write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        save_weights(trainer, path)
    assert path.read_text() == "whole"
