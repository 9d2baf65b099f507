"""Fixtures for the tests of LightningModules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import quiet_trainer

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification

Folder = Callable[..., Path]


@pytest.fixture
def tiny(tiny_model_folder: Folder) -> str:
    return str(tiny_model_folder("bert"))


@pytest.fixture
def data(tiny: str, glue_folder: Folder) -> Callable[..., GLUEDataModule]:
    """Create a data module with artificial rows of a task."""

    def make(task: str = "sst2", **settings: Any) -> GLUEDataModule:
        settings = {"max_length": 64, "eval_batch_size": 16, **settings}
        return GLUEDataModule(task, tiny, str(glue_folder(task)), **settings)

    return make


@pytest.fixture
def checkpoint(tiny: str, tmp_path: Path) -> Path:
    """Save a checkpoint of an untrained module."""
    trainer = quiet_trainer()
    trainer.strategy.connect(TextClassification(tiny, task="sst2"))
    path = tmp_path / "fine-tuned.ckpt"
    trainer.save_checkpoint(path)
    return path
