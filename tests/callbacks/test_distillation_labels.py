"""Exclusive and independent labels: detected from the loss or the configuration, or asked for, and never guessed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from helpers.tiny import VOCABULARY
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.label_kind import LossWatcher
from pgb_lightning.model_calls import Call
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]
Loss = Callable[[PreTrainedModel, Tensor, Tensor], Tensor]

ONE = torch.arange(16) % 3
MANY = (torch.arange(48).view(16, 3) % 2).float()
LOADER: DataLoader[Any] = DataLoader(
    [{"tokens": torch.randint(2, VOCABULARY, (9,)), "one": one, "many": many} for one, many in zip(ONE, MANY)],  # noqa: B905
    batch_size=8,
)


def build(cls: type[PreTrainedModel] = BertForSequenceClassification, **settings: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return cls(BertConfig(**{**sizes, "intermediate_size": 96, "num_labels": 3, **settings})).train()


class OwnLoss(L.LightningModule):
    """A module that computes its loss itself, from logits that it gets without labels."""

    def __init__(self, net: PreTrainedModel, loss: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def logits(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = net(input_ids=batch["tokens"]).logits
    return found


def focal(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    scores = logits(net, batch)
    losses = functional.binary_cross_entropy_with_logits(scores, batch["many"], reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def tokens(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(logits(net, batch).flatten(0, 1), batch["tokens"].flatten() % 3)


LOSSES: dict[str, tuple[bool, Callable[[PreTrainedModel, dict[str, Tensor]], Tensor]]] = {
    "labels, one": (True, lambda net, batch: net(input_ids=batch["tokens"], labels=batch["one"]).loss),
    "labels, many": (False, lambda net, batch: net(input_ids=batch["tokens"], labels=batch["many"]).loss),
    "cross-entropy": (True, lambda net, batch: functional.cross_entropy(logits(net, batch), batch["one"])),
    "module": (True, lambda net, batch: nn.CrossEntropyLoss(label_smoothing=0.1)(logits(net, batch), batch["one"])),
    "own cross-entropy": (True, lambda net, batch: -logits(net, batch).log_softmax(-1)[:, 0].mean()),
    "part of the rows": (True, lambda net, batch: nn.CrossEntropyLoss()(logits(net, batch)[:3], batch["one"][:3])),
    "binary": (False, lambda net, batch: nn.BCEWithLogitsLoss()(logits(net, batch), batch["many"])),
    "flat": (False, lambda net, batch: nn.BCEWithLogitsLoss()(logits(net, batch).view(-1), batch["many"].view(-1))),
    "probabilities": (False, lambda net, batch: nn.BCELoss()(logits(net, batch).sigmoid(), batch["many"])),
    "focal": (False, focal),
    "values": (False, lambda net, batch: functional.mse_loss(logits(net, batch), batch["many"])),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("prunes", [True, False])
def test_the_kind_of_labels_follows_from_the_loss(name: str, prunes: bool, trainer: MakeTrainer) -> None:
    exclusive, loss = LOSSES[name]
    callback = Distillation(hidden_weight=0)
    trainer(callback, *([PGBCallback(0.5)] if prunes else [])).fit(OwnLoss(build(), loss), LOADER)
    assert is_exclusive(callback) is exclusive


def is_exclusive(callback: Distillation) -> bool:
    """Return whether a shift of all logits changes nothing, as with a softmax."""
    assert callback.teacher is not None
    inputs = next(iter(LOADER))["tokens"]
    with torch.no_grad():
        target = callback.teacher.model(input_ids=inputs).logits
    hidden = [torch.zeros(1)]
    shifted = callback.loss(Call(kwargs={"input_ids": inputs}, output={"logits": target + 10}, hidden=hidden))
    return float(shifted) == pytest.approx(0, abs=1e-5)


def unknown(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return (logits(net, batch) - batch["many"]).abs().mean()


def both(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    scores = logits(net, batch)
    return functional.cross_entropy(scores, batch["one"]) + nn.BCEWithLogitsLoss()(scores, batch["many"])


@pytest.mark.parametrize("loss", [unknown, both])
def test_unknown_labels_are_refused_before_anything_is_pruned(loss: Any, trainer: MakeTrainer) -> None:
    module = OwnLoss(build(), loss)
    with pytest.raises(MisconfigurationException, match=r"exclusive_labels=None.*\b3 labels.*=True.*=False"):
        trainer(Distillation(), PGBCallback(0.5)).fit(module, LOADER)
    assert not is_pruned(find_encoder(module))
    assert "training_step" not in vars(module)
    for exclusive in (True, False):
        callback = Distillation(hidden_weight=0, exclusive_labels=exclusive)
        trainer(callback).fit(OwnLoss(build(), loss), LOADER)
        assert is_exclusive(callback) is exclusive
    trainer(Distillation(logits_weight=0)).fit(module, LOADER)  # compares no outputs


def test_a_problem_type_of_an_earlier_task_is_not_trusted(trainer: MakeTrainer) -> None:
    _, loss = LOSSES["binary"]
    module = OwnLoss(build(problem_type="single_label_classification"), loss)
    with pytest.raises(MisconfigurationException, match=r"'single_label_classification'.*exclusive_labels=False"):
        trainer(Distillation()).fit(module, LOADER)
    trainer(Distillation(exclusive_labels=False)).fit(module, LOADER)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_a_known_problem_type_needs_no_known_loss(problem_type: str, trainer: MakeTrainer) -> None:
    callback = Distillation(hidden_weight=0)
    trainer(callback).fit(OwnLoss(build(problem_type=problem_type), unknown), LOADER)
    assert not is_exclusive(callback)


def test_tokens_and_choices_are_exclusive(trainer: MakeTrainer) -> None:
    def choices(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        scores: Tensor = net(input_ids=batch["tokens"].view(4, 2, 9)).logits
        return scores[:, 0].mean()

    for net, loss in (
        (build(BertForTokenClassification), tokens),
        (build(BertForTokenClassification), lambda net, batch: logits(net, batch).square().mean()),
        (build(BertForMultipleChoice), choices),
    ):
        trainer(Distillation()).fit(OwnLoss(net, loss), LOADER)


def test_independent_labels_of_tokens_are_detected(trainer: MakeTrainer) -> None:
    def loss(net: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        scores = logits(net, batch)
        return functional.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    callback = Distillation(hidden_weight=0)
    trainer(callback).fit(OwnLoss(build(BertForTokenClassification), loss), LOADER)
    assert not is_exclusive(callback)


def test_a_calibration_step_leaves_the_question_to_the_training(trainer: MakeTrainer) -> None:
    class Calibrated(OwnLoss):
        def calibration_step(self, batch: dict[str, Tensor]) -> Tensor:
            return unknown(self.net, batch)

    callback = Distillation(hidden_weight=0)
    trainer(callback, PGBCallback(0.5)).fit(Calibrated(build(), LOSSES["binary"][1]), LOADER)
    assert not is_exclusive(callback)


def test_other_tensors_and_untrained_ones_do_not_count() -> None:
    scores, other = (torch.zeros(4, width, requires_grad=True) for width in (3, 5))
    with LossWatcher() as watcher:
        functional.cross_entropy(other, torch.zeros(4, dtype=torch.long))
        with torch.no_grad():
            scores.softmax(-1)
        functional.cross_entropy(scores.detach(), torch.zeros(4, dtype=torch.long))
        torch.zeros(4, 2, 7, 3, requires_grad=True).softmax(-1)  # attention
    assert watcher.exclusive([scores]) is None


@pytest.mark.parametrize("value", ["yes", 2, math.nan])
def test_an_invalid_setting_is_refused(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="exclusive_labels="):
        Distillation(exclusive_labels=value)
