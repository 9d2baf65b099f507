"""The cache of the teacher's answers in fits: the same training, later fits that compute nothing, and refusals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.model_calls import Call

MakeTrainer = Callable[..., L.Trainer]


class Counting(Distillation):
    """Count the rows that the teacher is given."""

    rows = 0

    def _answer(self, call: Call) -> Call:
        self.rows += len((*call.args, *call.kwargs.values())[0])
        return super()._answer(call)


class Start(L.Callback):
    """Keep the weights with which the training starts."""

    weights: Tensor

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = flat(pl_module)


def flat(module: L.LightningModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def fit(trainer: MakeTrainer, callback: Distillation, **settings: Any) -> tuple[float, Tensor]:
    """Return the last loss, and the change of the weights."""
    torch.manual_seed(0)
    module, start = OwnModule(), Start()
    made = trainer(PGBCallback(0.6), callback, start, **{"max_epochs": 3, **settings})
    made.fit(module, make_loader(shuffle=True))
    return float(made.callback_metrics["train_distillation"]), flat(module) - start.weights


@pytest.mark.parametrize(
    "settings", [{}, {"hidden_weight": 0}, {"logits_weight": 0}, {"layers": "last", "task_weight": 0.5}]
)
def test_training_is_the_same_with_a_cache_and_the_teacher_runs_once(
    settings: dict[str, Any], trainer: MakeTrainer, tmp_path: Path
) -> None:
    plain, cached = Counting(**settings), Counting(**settings, cache=tmp_path)
    (loss, change), (same_loss, same_change) = fit(trainer, plain), fit(trainer, cached)
    assert (plain.rows, cached.rows) == (3 * 48, 48)
    assert same_loss == pytest.approx(loss, rel=1e-2)
    assert float((same_change - change).norm()) < 0.05 * float(change.norm())
    later = Counting(**settings, cache=tmp_path)
    fit(trainer, later)
    assert later.rows == 0


def test_a_teacher_or_layers_of_another_kind_have_their_own_answers(trainer: MakeTrainer, tmp_path: Path) -> None:
    torch.save({"state_dict": OwnModule(seed=1).state_dict()}, tmp_path / "other.ckpt")
    folder = tmp_path / "cache"
    for settings in ({}, {"teacher": tmp_path / "other.ckpt"}, {"layers": [0]}, {"layers": [1]}, {"hidden_weight": 0}):
        callback = Counting(cache=folder, **settings)  # type: ignore[arg-type]
        fit(trainer, callback, max_epochs=1)
        assert callback.rows == 48
    assert len(list(folder.iterdir())) == 5
    double = Counting(cache=folder)
    fit(trainer, double, max_epochs=1, precision="64-true")
    assert double.rows == 48


def test_an_interrupted_fit_leaves_a_cache_that_works(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Interrupts(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("power cut")

    first = Counting(cache=tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(first, Interrupts()).fit(OwnModule(), make_loader())
    assert first.rows == 24
    again = Counting(cache=tmp_path)
    trainer(again).fit(OwnModule(), make_loader())
    assert again.rows == 24


def test_augmented_rows_end_the_cache_with_a_warning(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Augmented(Dataset[Any]):
        def __len__(self) -> int:
            return 288

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            tokens, label = rows[index]
            return tokens[torch.randperm(len(tokens))], label

    rows = make_rows(288)
    with pytest.warns(UserWarning, match=r"rows of epoch 2.*cache=None"):
        trainer(Distillation(cache=tmp_path), max_epochs=3).fit(OwnModule(), DataLoader(Augmented(), batch_size=32))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*rows of epoch")
        plain: Any = DataLoader(rows, batch_size=32, shuffle=True)  # type: ignore[arg-type]
        trainer(Distillation(cache=tmp_path), max_epochs=2).fit(OwnModule(), plain)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_an_invalid_size_is_refused(size: float) -> None:
    with pytest.raises(MisconfigurationException, match=f"cache_gb={size}"):
        Distillation(cache_gb=size)
