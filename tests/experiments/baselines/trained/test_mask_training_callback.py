"""The base class of the methods that train masks, inside Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.mask_training import LARGE, fit, has_no_trace, module_of
from helpers.tiny import batches
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.cofi import CoFi, CoFiSettings
from pgb_lightning.experiments.baselines.trained.teaching import output_loss
from pgb_lightning.experiments.mask_trained import final_settings
from pgb_lightning.model_calls import Call


def loader(count: int = 4) -> Any:
    return DataLoader(batches(count), batch_size=None)  # type: ignore[arg-type]


class Counting(MaskTraining):
    """Counts what a fit calls."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.calls: list[str] = []
        self.seen: list[float] = []

    def before_forward(self) -> None:
        self.calls.append("forward")

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        assert call.logits()
        return 0.5 * task_loss

    def before_optimizer(self) -> None:
        self.calls.append("before")

    def after_optimizer(self) -> None:
        self.calls.append("after")
        self.seen.append(self.progress)


def test_accumulated_batches_are_one_step(tiny_model_folder: Callable[..., Path]) -> None:
    callback = Counting()
    trainer = quiet_trainer(callbacks=[callback], accumulate_grad_batches=2)
    trainer.fit(module_of(tiny_model_folder("bert", **LARGE)), loader())
    assert callback.calls == ["forward", "forward", "before", "after"] * 2
    assert callback.seen == [0.5, 1.0]


def test_the_loss_of_the_method_is_trained(tiny_model_folder: Callable[..., Path]) -> None:
    class Still(Counting):
        def loss(self, task_loss: Tensor, call: Call) -> Tensor:
            return 0.0 * task_loss

    module = module_of(tiny_model_folder("bert", **LARGE))
    module.weight_decay = 0.0
    before = module.model.classifier.weight.clone()
    fit(module, Still(), steps=2)
    assert torch.equal(module.model.classifier.weight, before)


def test_an_error_leaves_no_trace(tiny_model_folder: Callable[..., Path]) -> None:
    class Broken(CoFi):
        def after_optimizer(self) -> None:
            raise RuntimeError("broken")

    module = module_of(tiny_model_folder("bert", **LARGE))
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, Broken(0.5))
    assert has_no_trace(module)


def test_what_cannot_work_is_refused(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> None:
    module = module_of(tiny_model_folder("bert", **LARGE))
    trainer = quiet_trainer(callbacks=[Counting()])
    trainer.fit(module, loader(1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match=r"ckpt_path=.*last\.ckpt"):
        quiet_trainer(callbacks=[Counting()], max_epochs=2).fit(module, loader(1), ckpt_path=tmp_path / "last.ckpt")
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="automatic_optimization=False"):
        fit(module, Counting())
    module.automatic_optimization = True
    fit(module, CoFi(0.5, distillation=False, settings=CoFiSettings(mask_learning_rate=0.5)), steps=2)
    module.train()
    quiet_trainer().fit(module, loader(1))  # what is left can be trained without the callback
    with pytest.raises(MisconfigurationException, match="distillation=False"):
        output_loss(Call(), Call(), 1.0, BertModel(BertConfig(hidden_size=12, num_hidden_layers=1)))


def test_a_method_with_a_teacher_learns_from_it_to_the_end() -> None:
    taught, alone = final_settings("cofi, distilled", 1.5), final_settings("cofi", 1.5)
    assert taught["epochs"] == alone["epochs"] == 1.5
    assert (taught["task_weight"], taught["logits_weight"], taught["hidden_weight"]) == (0.0, 1.0, 1.0)
    assert (alone["task_weight"], alone["logits_weight"], alone["hidden_weight"]) == (1.0, 0.0, 0.0)
