"""Optimizers that were created before the fit, or that select parameters by the type of their layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import ResumableModule
from helpers.families import tiny_batches, tiny_model
from helpers.own import OwnModule, make_loader
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import ExactResume, PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]

#: Separate and fused matrices, biases that pruning adds, interleaved parts, one layer for all runs.
KINDS = ("bert", "modernbert", "deberta", "albert")


def by_name(module: nn.Module) -> list[dict[str, Any]]:
    """Return parameter groups with and without weight decay, chosen by name."""
    named = dict(module.named_parameters())
    biases = [parameter for name, parameter in named.items() if name.endswith("bias")]
    weights = [parameter for name, parameter in named.items() if not name.endswith("bias")]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


class Early(ResumableModule):
    """Create the optimizer and its scheduler in ``__init__``."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        optimizer = torch.optim.AdamW(by_name(self), lr=1e-3)
        self.made = [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    def configure_optimizers(self) -> Any:
        return self.made


class Late(ResumableModule):
    """Create the same optimizer in ``configure_optimizers``."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(by_name(self), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class OfFamily(L.LightningModule):
    """A tiny model of a family, with an optimizer that is created in ``__init__``."""

    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.net: Any = tiny_model(model_type)
        self.made = torch.optim.SGD(self.parameters(), lr=1e-3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.made


def held(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("model_type", KINDS)
def test_an_early_optimizer_gets_the_parameters_of_the_pruned_layers(
    model_type: str, preset: str, trainer: MakeTrainer
) -> None:
    module = OfFamily(model_type)
    fit = trainer(PGBCallback(0.6, preset=preset), max_epochs=0)
    fit.fit(module, DataLoader(tiny_batches(3), batch_size=None))  # type: ignore[arg-type]
    assert is_pruned(find_encoder(module))
    [optimizer] = fit.optimizers
    assert sorted(held(optimizer)) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_fit_with_an_early_optimizer_equals_one_with_a_late_one(preset: str, trainer: MakeTrainer) -> None:
    modules = [Early(), Late()]
    for module in modules:
        L.seed_everything(1)
        trainer(PGBCallback(0.6, preset=preset), max_epochs=2).fit(module, make_loader())
    assert equal(*modules)


def test_an_early_optimizer_resumes_exactly_and_serves_a_second_fit(trainer: MakeTrainer, tmp_path: Path) -> None:
    L.seed_everything(1)
    whole, path = Early(), tmp_path / "one.ckpt"
    save = LambdaCallback(on_train_epoch_end=lambda t, m: t.save_checkpoint(path) if t.current_epoch == 0 else None)
    trainer(PGBCallback(), ExactResume(), save, max_epochs=2).fit(whole, make_loader())
    resumed = Early(seed=4)
    trainer(PGBCallback(), ExactResume(), max_epochs=2).fit(resumed, make_loader(), ckpt_path=path)
    assert equal(whole, resumed)
    again = trainer(max_epochs=1)
    again.fit(resumed, make_loader())
    assert sorted(held(again.optimizers[0])) == sorted(map(id, resumed.parameters()))
    assert not equal(whole, resumed)


def test_parameters_of_another_module_are_refused(trainer: MakeTrainer) -> None:
    class Foreign(OwnModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(OwnModule().parameters())

    with pytest.raises(MisconfigurationException, match=r"Foreign\.configure_optimizers.* \d+ "):
        trainer(PGBCallback()).fit(Foreign(), make_loader())


def by_type(module: nn.Module) -> list[nn.Parameter]:
    found = [each for each in module.modules() if isinstance(each, (nn.Linear, nn.LayerNorm, nn.Embedding))]
    return [parameter for each in found for parameter in each.parameters()]


def biases_and_head(module: OwnModule) -> list[nn.Parameter]:
    return [p for name, p in module.named_parameters() if name.endswith("bias") or "classifier" in name]


def head(module: OwnModule) -> list[nn.Parameter]:
    return list(module.net.classifier.parameters())


@pytest.mark.parametrize(("select", "warns"), [(by_type, True), (biases_and_head, False), (head, False)])
@pytest.mark.filterwarnings("ignore:.*calibrates on all")
def test_pruned_layers_that_are_selected_by_type_are_a_warning(
    select: Callable[[Any], list[nn.Parameter]], warns: bool, trainer: MakeTrainer, recwarn: pytest.WarningsRecorder
) -> None:
    class Selecting(OwnModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(select(self))

    module = Selecting()
    trainer(PGBCallback(preset="balanced"), max_epochs=0).fit(module, make_loader())
    messages = [str(each.message) for each in recwarn if "GroupedLinear" in str(each.message)]
    assert len(messages) == warns
    assert all("Selecting.configure_optimizers" in message and "net.bert" in message for message in messages)
