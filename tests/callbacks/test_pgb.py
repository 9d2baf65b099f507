"""The callback: prunes once, before the optimizer; resumes; refuses what it cannot do."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, shapes
from helpers.tiny import MODEL_TYPES, classifier
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pgb_lightning import follow_state_dict
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


class Resumable(OwnModule):
    """A user's module that follows the state dict, so that ``load_from_checkpoint`` rebuilds the pruned model."""

    def __init__(self) -> None:
        super().__init__()
        follow_state_dict(self)


class NeverCalibrate(OwnModule):
    """Fail if a loss is computed in eval mode."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        assert self.training, "calibrated"
        return super().training_step(batch, batch_idx)


def predictions(trainer: L.Trainer, module: L.LightningModule, **settings: Any) -> Tensor:
    return torch.cat(trainer.predict(module, make_loader(16), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("model_type", "ratio"), [*((name, 0.5) for name in MODEL_TYPES), ("bert", 0.88)])
def test_prune_fit_checkpoint_resume_and_load(
    trainer: MakeTrainer, model_type: str, ratio: float, tmp_path: Path
) -> None:
    class Module(Resumable):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier(model_type, layers=2)

    module, pgb = Module(), PGBCallback(ratio)
    dense = encoder_cost(find_encoder(module)).parameters
    fit = trainer(pgb, ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True, max_epochs=2)
    fit.fit(module, make_loader(), make_loader(16))
    left = encoder_cost(find_encoder(module)).parameters
    assert abs(1 - left / dense - ratio) <= 0.01
    assert pgb.plan is not None
    assert pgb.plan.kept_parameters == left
    optimized = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters()}
    expected = predictions(trainer(), module)

    path = tmp_path / "last.ckpt"
    assert torch.equal(predictions(trainer(), Module.load_from_checkpoint(path)), expected)
    assert torch.equal(predictions(trainer(PGBCallback(ratio)), Module(), ckpt_path=path), expected)
    resumed, again = Module(), PGBCallback(ratio)
    trainer(again, max_epochs=3).fit(resumed, make_loader(), make_loader(16), ckpt_path=path)
    assert again.plan == pgb.plan
    assert shapes(resumed) == shapes(module)
    assert not torch.equal(predictions(trainer(), resumed), expected)  # it was trained further


def test_a_users_module_resumes_unchanged(trainer: MakeTrainer, tmp_path: Path) -> None:
    module = OwnModule()
    trainer(PGBCallback(), ModelCheckpoint(tmp_path, filename="end"), enable_checkpointing=True).fit(
        module, make_loader()
    )
    path = tmp_path / "end.ckpt"
    checkpoint = torch.load(path, weights_only=True)  # primitives and tensors only
    assert checkpoint["callbacks"]["PGBCallback"]["plan"]["model_type"] == "bert"
    resumed = NeverCalibrate()
    trainer(PGBCallback(), max_epochs=2).fit(resumed, make_loader(), ckpt_path=path)
    assert is_pruned(find_encoder(resumed))
    assert torch.equal(predictions(trainer(PGBCallback()), OwnModule(), ckpt_path=path), predictions(trainer(), module))


def test_pruning_runs_after_setup_and_before_the_optimizer(trainer: MakeTrainer) -> None:
    class Ordered(OwnModule):
        def setup(self, stage: str) -> None:
            assert not is_pruned(find_encoder(self))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            assert is_pruned(find_encoder(self))
            return super().configure_optimizers()

    module = Ordered()
    trainer(PGBCallback()).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


def test_the_same_callback_prunes_a_second_module(trainer: MakeTrainer) -> None:
    pgb = PGBCallback()
    for seed in (0, 1):
        module = OwnModule(seed=seed)
        trainer(pgb).fit(module, make_loader())
        assert is_pruned(find_encoder(module))


def test_validate_and_predict_do_not_prune(trainer: MakeTrainer) -> None:
    module = OwnModule()
    trainer(PGBCallback()).validate(module, make_loader(16))
    predictions(trainer(PGBCallback()), module)
    assert not is_pruned(find_encoder(module))


def test_one_of_two_encoders_is_selected(trainer: MakeTrainer) -> None:
    class Two(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = classifier("roberta")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.net.parameters())

    with pytest.raises(MisconfigurationException, match=r"'net\.bert'.*'teacher\.roberta'"):
        trainer(PGBCallback()).fit(Two(), make_loader())
    module = Two()
    trainer(PGBCallback(encoder="net.bert")).fit(module, make_loader())
    assert is_pruned(find_encoder(module, "net"))
    assert not is_pruned(find_encoder(module, "teacher"))


def test_the_result_is_printed_and_logged(
    trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, pgb = OwnModule(), PGBCallback(0.7)
    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer(pgb, logger=logger, log_every_n_steps=1).fit(module, make_loader())
    assert pgb.plan is not None
    assert f"{pgb.plan.pruning_ratio:.2%}" in caplog.text
    assert f"{pgb.plan.total_parameters:,}" in caplog.text
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert float(first["pgb/encoder_parameters"]) == pgb.plan.kept_parameters
    assert float(first["pgb/pruning_ratio"]) == pytest.approx(pgb.plan.pruning_ratio, abs=1e-6)
    assert "train_loss" in ",".join(rows[0].split(","))


def test_progress_bars_follow_the_trainers_setting(trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(PGBCallback(), enable_progress_bar=True).fit(OwnModule(), make_loader())
    shown = capsys.readouterr().err
    assert "PGB calibration" in shown
    assert "PGB compensation" in shown
    trainer(PGBCallback()).fit(OwnModule(), make_loader())
    assert "PGB" not in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["default", "balanced"])
def test_permutation_compensated(trainer: MakeTrainer, preset: str) -> None:
    module, pgb = OwnModule(), PGBCallback(preset=preset, permutation="compensated")
    trainer(pgb).fit(module, make_loader())
    assert pgb.plan is not None
    assert pgb.plan.config["permutation"] == "compensated"
    assert pgb.plan.pruning_ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruning_ratio": 0.0}, r"pruning_ratio=0\.0"),
        ({"pruning_ratio": 1.2}, r"pruning_ratio=1\.2"),
        ({"max_groups": 0}, "max_groups=0"),
        ({"preset": "best"}, "preset='best'.*'default', 'balanced', 'paper'"),
        ({"permutation": "none"}, "permutation='none'"),
        ({"importance_threshold": "low"}, "importance_threshold='low'"),
        ({"calibration_size": 0}, "calibration_size=0"),
    ],
)
def test_an_invalid_setting_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"PGBCallback: .*{message}"):
        PGBCallback(**settings)


class NoData(L.LightningDataModule):
    """Fail if data is read."""

    def train_dataloader(self) -> Any:
        raise AssertionError("data was read")


class Headless(OwnModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # type: ignore[assignment]


def test_a_module_that_cannot_be_pruned_is_refused_before_data_is_read(trainer: MakeTrainer) -> None:
    def refused(module: L.LightningModule, pgb: PGBCallback, message: str) -> None:
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(MisconfigurationException, match=message):
            trainer(pgb).fit(module, datamodule=NoData())
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())

    refused(Headless(nn.Linear(2, 2)), PGBCallback(), "Headless")
    refused(OwnModule(), PGBCallback(encoder="net.bart"), r"encoder='net\.bart'")
    refused(
        OwnModule(),
        PGBCallback(0.95, "balanced", max_groups=1),
        r"pruning_ratio=0\.95.*0\.9167",
    )
    pruned = OwnModule()
    trainer(PGBCallback()).fit(pruned, make_loader())
    refused(pruned, PGBCallback(), "already")


def test_a_batch_with_a_nan_loss_is_refused_and_the_module_unchanged(trainer: MakeTrainer) -> None:
    class Poisoned(OwnModule):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return super().loss(batch) * (float("nan") if not self.training and self.steps == 2 else 1)

    module = Poisoned()
    with pytest.raises(MisconfigurationException, match=r"calibration batch 2.*nan"):
        trainer(PGBCallback()).fit(module, make_loader())
    assert not is_pruned(find_encoder(module))
    assert module.steps == 0
    # A later fit without the callback trains the dense module.
    fixed = trainer()
    fixed.fit(module, make_loader())
    assert not is_pruned(find_encoder(module))


def test_a_module_built_in_setup_is_pruned(trainer: MakeTrainer) -> None:
    class Late(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def setup(self, stage: str) -> None:
            self.net = classifier(layers=2).train()

    module = Late()
    trainer(PGBCallback()).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


@pytest.mark.slow
def test_an_encoder_in_eval_mode_is_a_warning(trainer: MakeTrainer) -> None:
    class AsLoaded(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.eval()  # as from_pretrained returns it

    class TrainsLater(AsLoaded):
        def on_train_start(self) -> None:
            self.net.train()

    class WithoutAny(AsLoaded):
        def __init__(self) -> None:
            super().__init__()
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0

    for module in (AsLoaded(), OwnModule().eval()):
        with pytest.warns(UserWarning, match="without dropout"):
            trainer(PGBCallback(0.5)).fit(module, make_loader())
    for module in (OwnModule(), TrainsLater(), WithoutAny()):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*without dropout")
            trainer(PGBCallback(0.5)).fit(module, make_loader())
