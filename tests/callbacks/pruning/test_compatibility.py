"""Trainer settings, and other callbacks in either order."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import ResumableModule, train_loader
from helpers.own import OwnModule, make_loader, make_rows, shapes
from helpers.tiny import classifier
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


class Tunable(ResumableModule):
    """A module with the attributes that the finders change."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = 1e-3
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(make_rows(), batch_size=self.batch_size)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return make_loader(16)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def fit_in_both_orders(
    trainer: MakeTrainer, other: Callable[[], L.Callback], module: Callable[[], OwnModule], **settings: Any
) -> Any:
    """Fit with the other callback before and after PGBCallback; both must give the same weights."""
    states = []
    for first in (True, False):
        L.seed_everything(3)
        callbacks = [PGBCallback(), other()] if first else [other(), PGBCallback()]
        fitted, made = trainer(*callbacks, **settings), module()
        loaders = () if hasattr(made, "batch_size") else (train_loader(), make_loader(16))
        fitted.fit(made, *loaders)
        assert is_pruned(find_encoder(made))
        optimized = {id(p) for group in fitted.optimizers[0].param_groups for p in group["params"]}
        assert optimized == {id(p) for p in made.parameters()}
        states.append({name: value for name, value in made.state_dict().items() if "accuracy" not in name})
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    return fitted, made


def test_early_stopping(trainer: MakeTrainer) -> None:
    fitted, _ = fit_in_both_orders(
        trainer, lambda: EarlyStopping("val_loss", patience=0, min_delta=10.0), ResumableModule, max_epochs=5
    )
    assert fitted.current_epoch < 5


def test_learning_rate_monitor(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fitted, _ = fit_in_both_orders(trainer, LearningRateMonitor, ResumableModule, logger=logger, log_every_n_steps=1)
    assert "lr-AdamW" in (Path(fitted.logger.log_dir) / "metrics.csv").read_text().splitlines()[0]


def test_checkpoints_hold_the_pruned_model(trainer: MakeTrainer, tmp_path: Path) -> None:
    numbers = itertools.count()
    _, module = fit_in_both_orders(
        trainer, lambda: ModelCheckpoint(tmp_path, f"end{next(numbers)}"), ResumableModule, enable_checkpointing=True
    )
    for name in ("end0", "end1"):
        assert shapes(ResumableModule.load_from_checkpoint(tmp_path / f"{name}.ckpt")) == shapes(module)


def test_the_summary_counts_the_pruned_model(trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _, module = fit_in_both_orders(trainer, ModelSummary, ResumableModule, enable_model_summary=True)
    printed = caplog.text
    total = sum(p.numel() for p in module.parameters())
    assert f"{total / 1e3:.1f} K" in printed
    dense = sum(p.numel() for p in ResumableModule().parameters())
    assert f"{dense / 1e3:.1f} K" not in printed


def test_the_batch_size_finder_runs_on_the_pruned_model(trainer: MakeTrainer) -> None:
    finder = lambda: BatchSizeFinder(steps_per_trial=1, max_trials=2)  # noqa: E731
    _, module = fit_in_both_orders(trainer, finder, Tunable)
    assert module.batch_size > 2


def test_the_learning_rate_finder_runs_on_the_pruned_model(trainer: MakeTrainer) -> None:
    finder = lambda: LearningRateFinder(num_training_steps=24, early_stop_threshold=None)  # noqa: E731
    _, module = fit_in_both_orders(trainer, finder, Tunable)
    assert module.lr != 1e-3


@pytest.mark.parametrize("other", [Timer, lambda: GradientAccumulationScheduler({0: 2})])
def test_other_callbacks(other: Callable[[], L.Callback], trainer: MakeTrainer) -> None:
    fit_in_both_orders(trainer, other, ResumableModule)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "32-true", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"precision": "64-true", "detect_anomaly": True},
        {"precision": "bf16-true"},
    ],
)
def test_trainer_settings(settings: dict[str, Any], trainer: MakeTrainer, tmp_path: Path) -> None:
    module = ResumableModule()
    keep = ModelCheckpoint(tmp_path, "end")
    fitted = trainer(PGBCallback(), keep, enable_checkpointing=True, max_epochs=2, **settings)
    fitted.fit(module, train_loader(), make_loader(16))
    assert is_pruned(find_encoder(module))
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert fitted.global_step == (6 if "accumulate_grad_batches" in settings else 12)
    resumed, pgb = ResumableModule(seed=2), PGBCallback()
    again = trainer(pgb, max_epochs=3, **settings)
    again.fit(resumed, train_loader(), make_loader(16), ckpt_path=tmp_path / "end.ckpt")
    assert shapes(resumed) == shapes(module)
    assert pgb.plan is not None


class Scoring(OwnModule):
    """Learn floating-point scores, which a precision plugin converts like all floating-point inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = classifier(layers=2, num_labels=1).train()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(input_ids=batch[0], labels=batch[1]).loss  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_calibration_runs_in_the_precision_of_the_module(precision: Any, trainer: MakeTrainer) -> None:
    rows = [(tokens, label.float() * 2.7) for tokens, label in make_rows()]
    pgb, module = PGBCallback(), Scoring()
    trainer(pgb, precision=precision).fit(module, DataLoader(rows, batch_size=8))  # type: ignore[arg-type]
    assert pgb.plan is not None
    plain = PGBCallback()
    trainer(plain).fit(Scoring(), DataLoader(rows, batch_size=8))  # type: ignore[arg-type]
    assert pgb.plan == plain.plan


def test_callbacks_that_hold_layers_are_refused_in_either_order(trainer: MakeTrainer) -> None:
    masks = lambda: ModelPruning("l1_unstructured", amount=0.5)  # noqa: E731
    for make in (EMAWeightAveraging, lambda: StochasticWeightAveraging(1e-3), masks):
        for callbacks in ([PGBCallback(), make()], [make(), PGBCallback()]):
            with pytest.raises(MisconfigurationException, match=r"WeightAveraging|ModelPruning"):
                trainer(*callbacks).fit(OwnModule(), make_loader())


def test_masks_of_a_separate_fit_stay_on_the_pruned_layers(trainer: MakeTrainer) -> None:
    module = OwnModule()
    trainer(PGBCallback(preset="balanced"), max_epochs=0).fit(module, make_loader())
    structure = shapes(module)
    trainer(ModelPruning("l1_unstructured", amount=0.5)).fit(module, make_loader())
    assert shapes(module) == structure
    weights = [value for name, value in module.net.bert.encoder.named_parameters() if name.endswith("dense.weight")]
    assert sum(int((weight == 0).sum()) for weight in weights) > 0.2 * sum(weight.numel() for weight in weights)


def test_weight_averaging_works_in_a_separate_fit(trainer: MakeTrainer) -> None:
    module = OwnModule()
    trainer(PGBCallback(), max_epochs=0).fit(module, make_loader())
    assert is_pruned(find_encoder(module))
    structure = shapes(module)
    trainer(EMAWeightAveraging()).fit(module, make_loader())
    assert shapes(module) == structure
