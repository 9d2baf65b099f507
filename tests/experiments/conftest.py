"""Fixtures of the experiments: a dense checkpoint with its data and model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.fakes import quiet_trainer

from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.modules import TextClassification

Inputs = dict[str, str]


@pytest.fixture(scope="session")
def dense_inputs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
) -> Callable[..., Inputs]:
    """Save a dense checkpoint of a task, and return the arguments of the commands that prune it."""
    # Large weights, so that pruning has an effect, and positions for the default of 128 tokens.
    settings = {"max_position_embeddings": 128, "initializer_range": 0.2}

    def make(task: str, model_type: str = "bert") -> Inputs:
        model, data = tiny_model_folder(model_type, **settings), glue_folder(task, train=64, validation=40)
        trainer, path = quiet_trainer(), tmp_path_factory.mktemp("dense") / f"{task}.ckpt"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trainer.strategy.connect(TextClassification(str(model), task=task))
        trainer.save_checkpoint(path)
        return {"task": task, "ckpt_path": str(path), "data_dir": str(data), "model_name_or_path": str(model)}

    return make


@pytest.fixture(scope="session")
def sst2(dense_inputs: Callable[[str], Inputs]) -> Inputs:
    """Return the arguments for a dense checkpoint of SST-2; tests must not change its file."""
    return dense_inputs("sst2")


@pytest.fixture(scope="session")
def reference(sst2: Inputs) -> DenseReference:
    """Return a calibrated dense model; tests must not change it."""
    return DenseReference.load(**sst2)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def restored_threads() -> Iterator[None]:
    """Restore the number of threads, which the commands set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
