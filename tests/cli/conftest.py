"""Fixtures for the tests of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.text_tables import Rows, reviews, write

from pgb_lightning.cli.prune import run_prune


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


@pytest.fixture
def prune(tmp_path: Path, fine_tuned: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Run the command on rows that are written to a file, with 48 rows of two classes by default."""

    def call(
        rows: Rows | None = None, output_dir: str = "out", name: str = "rows.csv", **settings: Any
    ) -> dict[str, Any]:
        rows = reviews(48, label=lambda row: ("bad", "good")[row % 2]) if rows is None else rows
        settings.setdefault("model", str(tmp_path / "model"))
        if not Path(settings["model"]).exists() and settings["model"] == str(tmp_path / "model"):
            fine_tuned(names=("good", "bad"), initializer_range=0.2)
        return run_prune(
            data=str(write(tmp_path / name, rows)),
            output_dir=str(tmp_path / output_dir),
            max_length=32,
            batch_size=8,
            accelerator="cpu",
            **settings,
        )

    return call
