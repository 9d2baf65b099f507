"""Fits that are calibrated on batches without labels, and steps that fail because of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from helpers.programs import ddp_label_free
from helpers.tiny import VOCABULARY, classifier
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import PGBCallback

MakeTrainer = Callable[..., L.Trainer]
Texts = dict[str, Any]

ROWS = [{"text": " ".join(map(str, tokens.tolist())), "label": int(label)} for tokens, label in make_rows(32)]


class TextModule(L.LightningModule):
    """Tokenize raw text in the step, which reads the labels after the model has run."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.net = classifier(layers=2, **settings).train()

    def encode(self, texts: list[str]) -> Tensor:
        return torch.tensor([[int(word) % VOCABULARY for word in text.split()] for text in texts])

    def training_step(self, batch: Texts, batch_idx: int) -> Tensor:
        logits = self.net(input_ids=self.encode(batch["text"])).logits
        return functional.cross_entropy(logits, batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class TextData(L.LightningDataModule):
    """Train on labeled text, and calibrate on other text without labels."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(ROWS, batch_size=8)  # type: ignore[arg-type]

    def calibration_dataloader(self) -> DataLoader[Any]:
        return DataLoader([{"text": row["text"]} for row in ROWS], batch_size=8)  # type: ignore[arg-type]


def unlabeled_rows(key: str = "input_ids") -> list[dict[str, Tensor]]:
    return [{key: tokens} for tokens, _ in make_rows(32)]


def fit(trainer: L.Trainer, module: L.LightningModule, pgb: PGBCallback, **data: Any) -> str:
    """Fit and return which gradients the plan was made from."""
    trainer.fit(module, **data)
    assert pgb.plan is not None
    assert pgb.plan.num_samples == 32
    return str(pgb.plan.config["fisher"])


def test_raw_text_without_labels(trainer: MakeTrainer) -> None:
    module, pgb = TextModule(problem_type="single_label_classification"), PGBCallback(0.5)
    with pytest.warns(UserWarning, match=r"fisher='predictions'.*KeyError: 'label'"):
        assert fit(trainer(pgb), module, pgb, datamodule=TextData()) == "predictions"


def test_labels_are_used_where_they_are(trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    module, pgb = TextModule(), PGBCallback(0.5, calibration="train_dataloader")
    with caplog.at_level(logging.INFO):
        assert fit(trainer(pgb), module, pgb, datamodule=TextData()) == "labels"
    assert any("fisher='labels'" in record.message for record in caplog.records)


@pytest.mark.parametrize("fisher", ["predictions", "outputs"])
def test_what_is_asked_for_is_used(trainer: MakeTrainer, fisher: Any) -> None:
    pgb = PGBCallback(0.5, fisher=fisher, calibration="train_dataloader")
    assert fit(trainer(pgb), TextModule(), pgb, datamodule=TextData()) == fisher  # the kind follows from the loss


class LabelsFirst(OwnModule):
    """Read the labels before the model runs."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
        labels = batch.pop("labels")
        return self.net(**batch, labels=labels).loss  # type: ignore[no-any-return]


class Unlabeled(OwnModule):
    """Calibrate on single tensors in place of pairs with a label."""

    def calibration_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(tokens,) for tokens, _ in make_rows(32)], batch_size=8)  # type: ignore[arg-type]


def test_a_step_that_fails_before_the_model_runs(trainer: MakeTrainer) -> None:
    module, pgb = LabelsFirst(), PGBCallback(0.5)
    module.net.config.problem_type = "single_label_classification"
    loader = DataLoader(unlabeled_rows(), batch_size=8)  # type: ignore[arg-type]
    assert fit(trainer(pgb, max_epochs=0), module, pgb, train_dataloaders=loader) == "predictions"


def test_batches_of_one_tensor(trainer: MakeTrainer) -> None:
    module, pgb = Unlabeled(), PGBCallback(0.5)
    assert fit(trainer(pgb), module, pgb, train_dataloaders=make_loader()) == "outputs"  # no problem_type


def test_a_step_that_returns_no_loss(trainer: MakeTrainer) -> None:
    class NoLoss(OwnModule):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            return self.net(**batch).loss  # type: ignore[no-any-return]

    module, pgb = NoLoss(), PGBCallback(0.5)
    loader = DataLoader(unlabeled_rows(), batch_size=8)  # type: ignore[arg-type]
    assert fit(trainer(pgb, max_epochs=0), module, pgb, train_dataloaders=loader) == "outputs"


def test_a_head_outside_of_the_model(trainer: MakeTrainer) -> None:
    class OwnHead(TextModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = self.net.bert, nn.Linear(24, 2)

        def training_step(self, batch: Texts, batch_idx: int) -> Tensor:
            states = self.net(self.encode(batch["text"])).last_hidden_state
            return functional.cross_entropy(self.head(states[:, 0]), batch["label"])

    for fisher, calibration, expected in (
        (None, None, "outputs"),
        ("predictions", "train_dataloader", "predictions"),
    ):
        pgb = PGBCallback(0.5, fisher=fisher, calibration=calibration)  # type: ignore[arg-type]
        assert fit(trainer(pgb), OwnHead(), pgb, datamodule=TextData()) == expected
    with pytest.raises(MisconfigurationException, match=r"BertModel .*fisher='outputs'"):
        trainer(PGBCallback(0.5, fisher="predictions")).fit(OwnHead(), datamodule=TextData())


def test_the_paper_needs_labels(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match=r"TextModule.*KeyError.*fisher='predictions'"):
        trainer(PGBCallback(0.5, preset="paper")).fit(TextModule(), datamodule=TextData())


def test_an_error_on_batches_with_labels_is_no_lack_of_labels(trainer: MakeTrainer) -> None:
    class Mistaken(OwnModule):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            self.net(**batch)
            raise KeyError("mistake")

    loader = DataLoader([{**row, "labels": 0} for row in unlabeled_rows()], batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="mistake"):
        trainer(PGBCallback(0.5)).fit(Mistaken(), loader)


def test_a_resumed_fit_keeps_the_plan(trainer: MakeTrainer, tmp_path: Any) -> None:
    module, pgb = TextModule(problem_type="single_label_classification"), PGBCallback(0.5)
    first = trainer(pgb)
    first.fit(module, datamodule=TextData())
    first.save_checkpoint(tmp_path / "first.ckpt")
    again = PGBCallback(0.5)
    trainer(again, max_epochs=2).fit(
        TextModule(problem_type="single_label_classification"), datamodule=TextData(), ckpt_path=tmp_path / "first.ckpt"
    )
    assert again.plan == pgb.plan


def test_the_random_state_and_the_model_are_left_alone(trainer: MakeTrainer) -> None:
    """Training draws the same numbers whatever calibration has drawn."""
    results = []
    for _ in range(2):
        L.seed_everything(3)
        module, pgb = TextModule(problem_type="single_label_classification"), PGBCallback(0.5)
        fit(trainer(pgb), module, pgb, datamodule=TextData())
        results.append((pgb.plan, torch.rand(1), module.net.classifier.weight.detach()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fisher": "prediction"}, "fisher='prediction'"),
        ({"fisher_temperature": 0.0}, r"fisher_temperature=0\.0"),
        ({"fisher_temperature": "hot"}, "fisher_temperature='hot'"),
        ({"fisher": "labels", "fisher_temperature": 2.0}, r"fisher_temperature=2\.0 .*fisher='labels'"),
        ({"preset": "paper", "fisher_temperature": 2.0}, r"fisher_temperature=2\.0 .*fisher='labels'"),
        ({"plan": "plan.json", "fisher": "outputs"}, "fisher='outputs'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PGBCallback(**settings)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_draw_what_one_draws(two_processes: Any, tmp_path: Any) -> None:
    first, second = (torch.load(two_processes / "label-free" / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first == second
    ddp_label_free.main(tmp_path, devices=1)
    alone = torch.load(tmp_path / "rank0.pt", weights_only=False)
    assert alone["structure"] == first["structure"]
    assert alone["kept"] == pytest.approx(first["kept"], rel=1e-4)  # of importances, which depend on the draws
    assert first["fisher"] == "predictions"
