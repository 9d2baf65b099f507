"""Fixtures of the callback tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import Whole


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


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A fit that nothing interrupted; its weights are for reading."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Whole(tmp_path_factory.mktemp("whole") / "run")
    torch.set_num_threads(before)
    return made


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The order of sums, hence the last bit, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
