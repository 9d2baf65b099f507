"""Fits whose loss has no gradient are refused before anything changes; steps that return None skip their batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from helpers.tiny import classifier
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.config import PRESETS

MakeTrainer = Callable[..., L.Trainer]
Batch = tuple[Tensor, Tensor]


class Triplets(OwnModule):
    """Metric learning: the margin of every triplet is met already."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
        anchor, other, same = (self.embed(tokens) for tokens in (batch[0], batch[0].flip(0), batch[0].clone()))
        return torch.relu((anchor * other).sum(-1) - (anchor * same).sum(-1) - 0.1).mean()

    def embed(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.net.bert(tokens).last_hidden_state.mean(1), dim=-1)


class Saturated(OwnModule):
    def calibration_step(self, batch: Batch) -> Tensor:
        logits = self.net(batch[0]).logits
        return functional.cross_entropy(1e6 * logits, logits.argmax(1))


class Frozen(OwnModule):
    """Only a head is trained; the encoder runs without gradients."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            pooled = self.net.bert(batch[0]).pooler_output
        return functional.cross_entropy(self.net.classifier(pooled), batch[1])


class Unused(OwnModule):
    """The callback is told to prune an encoder that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.other = classifier("bert", layers=1, seed=1)


def refuse(trainer: L.Trainer, module: L.LightningModule, message: str, **settings: Any) -> None:
    """Check that a fit is refused and leaves the module as it was."""
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module, make_loader(), **settings)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert trainer.global_step == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_met_margins_are_refused(trainer: MakeTrainer, preset: str) -> None:
    refuse(trainer(PGBCallback(preset=preset)), Triplets(), r"No calibration sample has a gradient.*calibration_step")


@pytest.mark.parametrize("module", [Saturated, Frozen])
def test_other_losses_without_a_gradient_are_refused(trainer: MakeTrainer, module: type[OwnModule]) -> None:
    refuse(trainer(PGBCallback()), module(), r"No calibration sample has a gradient")


def test_an_encoder_that_the_loss_does_not_use_is_refused(trainer: MakeTrainer) -> None:
    refuse(trainer(PGBCallback(encoder="other")), Unused(), r"No calibration sample .*'other\.bert'.*encoder=")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the plan was made for other weights")
def test_a_given_plan_with_compensation_is_refused(trainer: MakeTrainer, tmp_path: Path) -> None:
    pgb = PGBCallback()
    trainer(pgb, max_epochs=0).fit(OwnModule(), make_loader())
    assert pgb.plan is not None
    pgb.plan.save(tmp_path / "given.json")
    again = PGBCallback(plan=tmp_path / "given.json", compensation=True)
    refuse(trainer(again), Triplets(), r"No calibration sample has a gradient")


def test_samples_without_a_gradient_are_counted_in_one_warning(trainer: MakeTrainer) -> None:
    class Partly(OwnModule):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
            each = functional.cross_entropy(self.net(batch[0]).logits, batch[1], reduction="none")
            return (each * (batch[0][:, 0] % 2)).mean()

    expected = sum(int(tokens[0] % 2) for tokens, _ in make_rows())
    with pytest.warns(UserWarning, match=f"{expected} of 48 calibration samples") as caught:
        trainer(PGBCallback()).fit(Partly(), make_loader())
    assert sum("calibration samples" in str(warning.message) for warning in caught) == 1


class Skips(OwnModule):
    """Skip the batches that hold a certain row, after their loss was computed."""

    skipped: tuple[int, ...] = (0, 17)
    step = "training_step"

    def __init__(self) -> None:
        super().__init__()
        if self.step == "calibration_step":
            self.calibration_step = lambda batch: self.loss_or_none(batch)

    def loss_or_none(self, batch: Batch) -> Tensor | None:
        loss = self.loss(batch)
        bad = {tuple(make_rows()[row][0].tolist()) for row in self.skipped}
        return None if any(tuple(tokens.tolist()) in bad for tokens in batch[0]) else loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return self.loss_or_none(batch) if self.step == "training_step" else self.loss(batch)

    def calibration_dataloader(self) -> DataLoader[Any]:
        return make_loader()


class Left(OwnModule):
    """Calibrate on the batches that Skips does not skip."""

    def calibration_dataloader(self) -> DataLoader[Any]:
        rows = make_rows()
        return DataLoader(rows[8:16] + rows[24:], batch_size=8)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None")
@pytest.mark.parametrize("step", ["training_step", "calibration_step"])
def test_batches_that_the_step_skips_are_left_out(trainer: MakeTrainer, step: str) -> None:
    class Module(Skips):
        pass

    Module.step = step
    skipping, expected = PGBCallback(), PGBCallback()
    modules = Module(), Left()
    for pgb, module in zip((skipping, expected), modules, strict=True):
        trainer(pgb, max_epochs=0).fit(module, make_loader())
    assert skipping.plan is not None
    assert skipping.plan.num_samples == 32
    assert skipping.plan == expected.plan
    first, second = (module.net.state_dict() for module in modules)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    trainer(PGBCallback()).fit(Module(), make_loader())  # the fit skips the same batches


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None")
def test_a_step_that_skips_all_batches_is_refused(trainer: MakeTrainer) -> None:
    class Module(Skips):
        skipped = tuple(range(48))

    refuse(trainer(PGBCallback()), Module(), r"None for all 6 calibration batches")


def test_a_dict_without_a_loss_is_refused_as_in_training(trainer: MakeTrainer) -> None:
    class Module(OwnModule):
        def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
            return {"loss": None, "logits": self.net(batch[0]).logits}

    refuse(trainer(PGBCallback()), Module(), r"Module\.training_step returned dict for calibration batch 0")


def test_a_step_may_ask_for_the_gradient_of_the_embeddings(trainer: Callable[..., L.Trainer]) -> None:
    class Adversarial(OwnModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            embeddings = self.net.bert.embeddings.word_embeddings(batch[0]).detach().requires_grad_()
            clean = self.net(inputs_embeds=embeddings, labels=batch[1]).loss
            [gradient] = torch.autograd.grad(clean, embeddings, retain_graph=True)
            return clean + self.net(inputs_embeds=embeddings + 0.1 * gradient.sign(), labels=batch[1]).loss

    pgb = PGBCallback()
    trainer(pgb).fit(Adversarial(), make_loader())
    assert pgb.plan is not None
