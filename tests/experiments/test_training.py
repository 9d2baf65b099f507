"""The Trainer of the experiments: one device, clipped gradients, and no files."""

from __future__ import annotations

import pytest
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator

from pgb_lightning.experiments.training import make_trainer


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
