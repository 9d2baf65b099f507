"""Random number generators continue from the state in the checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.own import OwnModule, make_loader
from lightning.pytorch.callbacks import ModelCheckpoint

from pgb_lightning.callbacks import ExactResume

MakeTrainer = Callable[..., L.Trainer]


class Drawing(OwnModule):
    """Draw from every generator with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, ...]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        gauss = random.gauss(0, 1), float(np.random.randn())  # Both keep a second number for the next call.
        self.drawn.append((*gauss, random.random(), float(np.random.rand()), float(torch.rand(()))))


class Estimating(Drawing):
    """Let Lightning create the loader before the fit, as a schedule with warm-up does.

    Args:
        hook: The method that asks for the number of steps.
    """

    def __init__(self, hook: str = "configure_optimizers") -> None:
        super().__init__()
        self.hook = hook
        self.rows: list[int] = []

    def setup(self, stage: str) -> None:
        if self.hook == "setup":
            assert self.trainer.estimated_stepping_batches > 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.hook == "configure_optimizers":
            assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.rows.append(int(batch[0].sum()))


class Failing(L.Callback):
    """Fail after the other callbacks have read a checkpoint."""

    def on_load_checkpoint(self, *_: Any) -> None:
        raise KeyError("unknown")


def drawn(trainer: MakeTrainer, folder: Path, exact: bool, **arguments: Any) -> list[tuple[float, ...]]:
    module = Drawing()
    callbacks = [*([ExactResume()] if exact else []), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)]
    trainer(*callbacks, enable_checkpointing=True, max_epochs=3).fit(module, make_loader(shuffle=True), **arguments)
    return module.drawn


@pytest.mark.parametrize("exact", [True, False])
def test_all_generators_continue(exact: bool, trainer: MakeTrainer, tmp_path: Path) -> None:
    L.seed_everything(1)
    uninterrupted = drawn(trainer, tmp_path, exact)
    L.seed_everything(2)
    resumed = drawn(trainer, tmp_path / "resumed", exact, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert (resumed == uninterrupted[6:]) is exact


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("hook", ["setup", "configure_optimizers"])
def test_it_is_exact_if_the_number_of_steps_is_estimated(
    hook: str, shuffle: bool, trainer: MakeTrainer, tmp_path: Path
) -> None:
    modules = Estimating(hook), Estimating(hook)
    for seed, (module, ckpt_path) in enumerate(zip(modules, (None, tmp_path / "epoch=0.ckpt"), strict=True)):
        L.seed_everything(seed)
        callbacks = [ExactResume(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)]
        fit = trainer(*callbacks, enable_checkpointing=True, max_epochs=3)
        fit.fit(module, make_loader(shuffle=shuffle), make_loader(8), ckpt_path=ckpt_path)
    assert modules[1].drawn == modules[0].drawn[6:]
    assert modules[1].rows == modules[0].rows[6:]


def test_a_checkpoint_without_states_resumes_as_usual(trainer: MakeTrainer, tmp_path: Path) -> None:
    drawn(trainer, tmp_path, exact=False)
    with pytest.warns(UserWarning, match=r"ExactResume.*without this callback"):
        assert len(drawn(trainer, tmp_path / "resumed", exact=True, ckpt_path=tmp_path / "epoch=0.ckpt")) == 12


def test_another_kind_of_device_is_a_warning(trainer: MakeTrainer, tmp_path: Path) -> None:
    drawn(trainer, tmp_path, exact=True)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    checkpoint["ExactResume"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(checkpoint, tmp_path / "cuda.ckpt")
    with pytest.warns(UserWarning, match=r"ExactResume.*CUDA.*cpu"):
        drawn(trainer, tmp_path / "resumed", exact=True, ckpt_path=tmp_path / "cuda.ckpt")


def test_a_different_number_of_processes_is_a_warning(trainer: MakeTrainer, tmp_path: Path) -> None:
    drawn(trainer, tmp_path, exact=True)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    checkpoint["ExactResume"] = checkpoint["ExactResume"] * 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match=r"ExactResume.*\b2\b.*\b1\b"):
        drawn(trainer, tmp_path / "resumed", exact=True, ckpt_path=tmp_path / "two.ckpt")


def test_evaluating_a_checkpoint_does_not_change_the_generators(trainer: MakeTrainer, tmp_path: Path) -> None:
    drawn(trainer, tmp_path, exact=True)
    evaluated = trainer(ExactResume())
    evaluated.validate(OwnModule(), make_loader(8), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluated.callbacks[0].on_fit_start(evaluated, OwnModule())  # type: ignore[attr-defined]
    assert torch.equal(torch.rand(3), expected)


def test_a_resume_that_fails_leaves_nothing_for_the_next_fit(trainer: MakeTrainer, tmp_path: Path) -> None:
    drawn(trainer, tmp_path, exact=True)
    shared = ExactResume()
    with pytest.raises(KeyError):
        trainer(shared, Failing(), max_epochs=3).fit(Drawing(), make_loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    modules = Drawing(), Drawing()
    for module, callback in zip(modules, (shared, ExactResume()), strict=True):
        L.seed_everything(3)
        trainer(callback).fit(module, make_loader())
    assert modules[0].drawn == modules[1].drawn
