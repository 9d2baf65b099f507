"""Fixtures of the data modules' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.text_tables import write

from pgb_lightning.datamodules import TextDataModule


@pytest.fixture
def make(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., TextDataModule]:
    """Make a data module of rows that are written to a file."""

    def build(rows: list[dict[str, Any]], name: str = "rows.csv", **settings: Any) -> TextDataModule:
        settings.setdefault("model_name_or_path", str(tiny_model_folder("bert")))
        data = TextDataModule(str(write(tmp_path / name, rows)), max_length=32, calibration_size=20, **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return build
