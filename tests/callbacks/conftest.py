"""Fixtures of the callback tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import UninterruptedFit


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Make a quiet CPU Trainer that logs and saves into the test's folder."""

    def make(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
        defaults = {
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return L.Trainer(
            accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), **(defaults | settings)
        )

    return make


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> UninterruptedFit:
    """Fit without interruption. Read only: its weights must not be trained further."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = UninterruptedFit(tmp_path_factory.mktemp("uninterrupted") / "run")
    torch.set_num_threads(before)
    return made


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: the order of sums, and so the last bit, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGINT, which Lightning ignores after a KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
