"""The callback that trains with fewer random numbers: only in training, with and without pruning, also after errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from torch import nn

from pgb_lightning.callbacks import FastDropout, PGBCallback
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers import Dropout16
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned


@pytest.fixture
def tiny(tiny_model_folder: Callable[..., Path]) -> str:
    return str(tiny_model_folder("bert"))


@pytest.fixture
def data(tiny: str, glue_folder: Callable[..., Path]) -> GLUEDataModule:
    return GLUEDataModule("sst2", tiny, str(glue_folder("sst2")), max_length=64, eval_batch_size=16)


def kinds(module: nn.Module) -> set[type]:
    return {type(each) for each in module.modules() if isinstance(each, nn.Dropout)}


class Seen(L.Callback):
    """Record the types of the dropout layers in every step, and raise an error in one."""

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.kinds: set[type] = set()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.kinds |= kinds(pl_module)
        if self.failing:
            raise RuntimeError("a failing step")


def test_layers_are_replaced_while_a_pruned_module_is_trained(tiny: str, data: GLUEDataModule) -> None:
    torch.manual_seed(0)
    module, seen = TextClassification(tiny, task="sst2"), Seen()
    keys = list(module.state_dict())
    trainer = quiet_trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, callbacks=[PGBCallback(0.5), FastDropout(), seen]
    )
    trainer.fit(module, data)
    assert is_pruned(find_encoder(module))
    assert seen.kinds == {Dropout16}
    assert kinds(module) == {nn.Dropout}
    assert len(list(module.state_dict())) <= len(keys)


def test_layers_are_put_back_after_an_error(tiny: str, data: GLUEDataModule) -> None:
    module = TextClassification(tiny, task="sst2")
    with pytest.raises(RuntimeError, match="a failing step"):
        quiet_trainer(max_epochs=1, limit_val_batches=0, callbacks=[FastDropout(), Seen(failing=True)]).fit(
            module, data
        )
    assert kinds(module) == {nn.Dropout}


def test_pruning_is_the_same_with_it(tiny: str, data: GLUEDataModule) -> None:
    plans = []
    for callbacks in ([], [FastDropout()]):
        torch.manual_seed(0)
        pgb = PGBCallback(0.5)
        quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, callbacks=[pgb, *callbacks]).fit(
            TextClassification(tiny, task="sst2"), data
        )
        plans.append(pgb.plan)
    assert plans[0] == plans[1]
