"""Fixtures of the callback tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from filelock import FileLock
from helpers.entries import UninterruptedFit
from helpers.fakes import squad_folder
from helpers.processes import run


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


@pytest.fixture(scope="session")
def squad_model(tiny_model_folder: Callable[..., Path]) -> str:
    """Return a tiny model that takes sequences of 100 tokens."""
    return str(tiny_model_folder("bert", max_position_embeddings=130))


@pytest.fixture(scope="session")
def squad_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return SQuAD 2.0 data: 21 questions, whose windows two processes cannot share evenly."""
    return squad_folder(tmp_path_factory.mktemp("squad") / "rows", "2.0", validation=21)


@pytest.fixture(scope="session")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, squad_model: str, squad_rows: Path, glue_folder: Callable[..., Path]
) -> Path:
    """Run ``programs/two_processes.py`` once, also when several pytest workers need it, and return its folder."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives every worker a subfolder of one folder.
    folder = (base.parent if base.name.startswith("popen-") else base) / "two_processes"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            assert not folder.exists(), "the program failed in another worker"
            folder.mkdir()
            run("programs/two_processes.py", folder, squad_model, glue_folder("stsb"), squad_rows)
            (folder / "finished").touch()
    return folder
