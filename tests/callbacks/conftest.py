"""Fixtures of the callback tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Make a quiet CPU trainer that logs and saves into the test's folder."""

    def make(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
        return L.Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": 1,
                "default_root_dir": tmp_path,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "callbacks": list(callbacks),
                **settings,
            }
        )

    return make
