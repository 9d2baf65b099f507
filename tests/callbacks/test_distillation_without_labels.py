"""Distillation without the task's loss: steps that fail for lack of labels, errors where they are needed, layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from helpers.tiny import batches, classifier
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertForQuestionAnswering, BertForTokenClassification

from pgb_lightning.callbacks import Distillation
from pgb_lightning.model_calls import Call
from pgb_lightning.modules import TextClassification

MakeTrainer = Callable[..., L.Trainer]


class Plain(L.LightningModule):
    """Return the loss of the model, which needs labels in the batch."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net: Any = classifier(layers=2).train() if net is None else net
        self.net.config.problem_type = "single_label_classification"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class ReadsFirst(Plain):
    """Fail before the model is called."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return nn.functional.cross_entropy(self.net(**inputs).logits, labels)


class ReadsLater(Plain):
    """Fail after the model was called."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(**batch).logits
        return nn.functional.cross_entropy(logits, batch["labels"])


class NoLoss(Plain):
    """Return a dict in which the loss is None."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.net(**batch).loss, "other": 1}


class FromTuple(Plain):
    """Take tuples, and fail if there is one tensor only."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, labels = batch
        return self.net(input_ids=tokens, labels=labels).loss


def unlabeled(count: int = 4) -> DataLoader[Any]:
    rows = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches(count)]
    return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


def gradients_of(module: L.LightningModule, callback: Distillation, loader: Any, trainer: MakeTrainer) -> list[Tensor]:
    """Return the gradients of the first step, for a student that differs from its teacher and has no dropout."""

    class Differs(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            generator = torch.Generator().manual_seed(3)
            for parameter in pl_module.parameters():
                parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            found.extend(p.grad.clone() for p in pl_module.parameters() if p.grad is not None)

    found: list[Tensor] = []
    module.eval()
    trainer(callback, Differs(), limit_train_batches=1).fit(module, loader)
    return found


@pytest.mark.parametrize("kind", [Plain, ReadsFirst, ReadsLater, NoLoss])
def test_gradients_do_not_depend_on_labels(kind: type[Plain], trainer: MakeTrainer) -> None:
    labeled = DataLoader(batches(4), batch_size=None)  # type: ignore[arg-type]
    expected = gradients_of(Plain(classifier(layers=2)), Distillation(), labeled, trainer)
    found = gradients_of(kind(classifier(layers=2)), Distillation(), unlabeled(), trainer)
    assert len(expected) == len(found) > 10
    torch.testing.assert_close(found, expected)


def test_a_batch_of_tokens_alone_is_enough(trainer: MakeTrainer) -> None:
    for rows in ([tokens for tokens, _ in make_rows(16)], [(tokens,) for tokens, _ in make_rows(16)]):
        fit = trainer(Distillation())
        with pytest.warns(UserWarning, match=r"FromTuple\.training_step.*task_weight=0"):
            fit.fit(FromTuple(), DataLoader(rows, batch_size=8))  # type: ignore[arg-type]
        assert fit.callback_metrics["train_distillation"] >= 0
        assert fit.global_step == 2


@pytest.mark.parametrize("head", [BertForQuestionAnswering, BertForTokenClassification])
def test_other_heads(head: Any, trainer: MakeTrainer) -> None:
    module = Plain(head(classifier(layers=2).config))
    fit = trainer(Distillation())
    fit.fit(module, unlabeled())
    assert fit.global_step == 4


def test_it_is_said_once_and_the_loss_of_the_task_is_not_logged(
    trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fit = trainer(Distillation(), max_epochs=2)
    fit.fit(ReadsLater(), unlabeled())
    said = [record.getMessage() for record in caplog.records if "task_weight=0" in record.getMessage()]
    assert len(said) == 1
    assert "without labels" in said[0]
    assert "KeyError" not in said[0]  # expected, so no reason for alarm
    assert "train_loss" not in fit.callback_metrics


def test_labels_may_be_in_some_batches_only(trainer: MakeTrainer) -> None:
    mixed: Any = [*unlabeled(2).dataset, *batches(2)]
    fit = trainer(Distillation())
    fit.fit(ReadsLater(), DataLoader(mixed, batch_size=None))
    assert fit.global_step == 4


@pytest.mark.parametrize("kind", [Plain, ReadsFirst, ReadsLater, NoLoss])
def test_a_weight_of_the_task_needs_labels(kind: type[Plain], trainer: MakeTrainer) -> None:
    module = kind()
    with pytest.raises(MisconfigurationException, match=rf"task_weight=0\.5.*{kind.__name__}\.training_step.*weight=0"):
        trainer(Distillation(task_weight=0.5)).fit(module, unlabeled())
    assert "training_step" not in vars(module)


def test_a_step_that_makes_its_own_labels_needs_none(trainer: MakeTrainer) -> None:
    class Consistency(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.net(**batch).logits - self.net(**batch).logits.detach()).square().mean()

    trainer(Distillation(task_weight=0.5)).fit(Consistency(), unlabeled())


def test_errors_of_steps_with_labels_are_not_hidden(trainer: MakeTrainer) -> None:
    class Wrong(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch).loss + batch["mistake"]

    labeled = DataLoader(batches(4), batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="mistake"):
        trainer(Distillation()).fit(Wrong(), labeled)


def test_a_batch_that_cannot_be_given_to_the_model_raises_the_error_of_the_step(trainer: MakeTrainer) -> None:
    loader: Any = DataLoader([{"texts": torch.zeros(2)}], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="labels"):
        trainer(Distillation()).fit(ReadsFirst(), loader)


def test_a_step_that_skips_labeled_batches_is_followed(trainer: MakeTrainer) -> None:
    class Skips(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(**batch).loss
            return None if batch_idx == 0 else loss

    class Counting(Distillation):
        counted = 0

        def loss(self, call: Call) -> Tensor:
            self.counted += 1
            return super().loss(call)

    callback = Counting()
    trainer(callback).fit(Skips(), DataLoader(batches(4), batch_size=None))  # type: ignore[arg-type]
    assert callback.counted == 3


def test_no_backward_pass_through_the_loss_of_the_task(trainer: MakeTrainer) -> None:
    class Counting(OwnModule):
        counted = 0

        def loss(self, batch: Any) -> Tensor:
            loss = super().loss(batch)
            if loss.requires_grad:
                loss.register_hook(self._count)
            return loss

        def _count(self, gradient: Tensor) -> None:
            self.counted += 1

    for weight, expected in ((0.0, 0), (0.5, 2)):
        module = Counting()
        trainer(Distillation(task_weight=weight)).fit(module, make_loader(16))
        assert module.counted == expected


def test_text_classification_learns_from_texts_alone(tiny_model_folder: Any, trainer: MakeTrainer) -> None:
    module = TextClassification(str(tiny_model_folder("bert")))
    inputs = {
        "input_ids": torch.randint(2, module.model.config.vocab_size, (4, 7)),
        "attention_mask": torch.ones(4, 7).long(),
    }
    loader: Any = DataLoader([inputs, inputs], batch_size=None)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"no labels.*task_weight=0"):
        trainer().fit(module, loader)
    fit = trainer(Distillation())
    fit.fit(module, loader)
    assert fit.global_step == 2
    assert "train_loss" not in fit.callback_metrics


# ---- layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "compared"), [("all", [0, 1]), ("last", [1]), ([0], [0]), ([1, 0], [0, 1])])
def test_the_chosen_layers_are_compared(layers: Any, compared: list[int], trainer: MakeTrainer) -> None:
    module, other = OwnModule(), OwnModule(seed=1)

    class OtherTeacher(Distillation):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            assert self.teacher is not None
            self.teacher.model.load_state_dict(other.net.state_dict())

    module.net.eval()
    other.net.eval()
    tokens = next(iter(make_loader()))[0]
    with torch.no_grad():
        pairs = zip(*(m.net(tokens, output_hidden_states=True).hidden_states[1:] for m in (module, other)), strict=True)
        losses = [float((one - two).square().sum() / two.square().sum()) for one, two in pairs]
    fit = trainer(OtherTeacher(logits_weight=0, layers=layers), limit_train_batches=1)
    fit.fit(module, make_loader())
    expected = sum(losses[index] for index in compared) / len(compared)
    assert fit.callback_metrics["train_distillation"] == pytest.approx(expected, rel=1e-4)


def test_layers_out_of_range_are_refused(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match=r"layers=\[0, 2\].*0 to 1"):
        trainer(Distillation(layers=[0, 2])).fit(OwnModule(), make_loader())
    trainer(Distillation(layers=[0, 2], hidden_weight=0)).fit(OwnModule(), make_loader())
