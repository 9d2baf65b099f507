"""Fixtures for the tests of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, as if the process had no arguments of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pgb"])


@pytest.fixture(scope="session")
def overrides(tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> list[str]:
    """Replace the model and the data of an SST-2 configuration by a tiny model and artificial rows."""
    model = str(tiny_model_folder("bert"))
    return [
        *("--model.model_name_or_path", model, "--data.model_name_or_path", model),
        *("--data.data_dir", str(glue_folder("sst2")), "--data.max_length", "32"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false", "--trainer.max_epochs", "1"),
    ]
