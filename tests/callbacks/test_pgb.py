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
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
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
    """What the one line in ``__init__`` adds: ``load_from_checkpoint`` rebuilds the grouped model."""

    def __init__(self) -> None:
        super().__init__()
        follow_state_dict(self)


class NeverCalibrate(OwnModule):
    """Fails if it is asked for a loss in eval mode."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        assert self.training, "nothing may be calibrated"
        return super().training_step(batch, batch_idx)


def predictions(trainer: L.Trainer, module: L.LightningModule, **settings: Any) -> Tensor:
    return torch.cat(trainer.predict(module, make_loader(16), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ratio", [0.5, 0.88])
def test_the_whole_path_prune_fit_checkpoint_resume_load(
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
    assert not torch.equal(predictions(trainer(), resumed), expected)  # it went on learning


def test_a_user_s_module_needs_no_change_to_resume(trainer: MakeTrainer, tmp_path: Path) -> None:
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


def test_pruning_comes_after_setup_and_before_the_optimizer(trainer: MakeTrainer) -> None:
    class Ordered(OwnModule):
        def setup(self, stage: str) -> None:
            assert not is_pruned(find_encoder(self))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            assert is_pruned(find_encoder(self))
            return super().configure_optimizers()

    module = Ordered()
    trainer(PGBCallback()).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


def test_a_second_fit_goes_on_with_the_pruned_model(trainer: MakeTrainer) -> None:
    module, pgb = OwnModule(), PGBCallback()
    trainer(pgb).fit(module, make_loader())
    before, plan = shapes(module), pgb.plan
    trainer(pgb).fit(module, make_loader())
    assert shapes(module) == before
    assert pgb.plan is plan


def test_the_same_callback_prunes_another_module_anew(trainer: MakeTrainer) -> None:
    pgb = PGBCallback()
    for seed in (0, 1):
        module = OwnModule(seed=seed)
        trainer(pgb).fit(module, make_loader())
        assert is_pruned(find_encoder(module))


def test_validate_and_predict_prune_nothing(trainer: MakeTrainer) -> None:
    module = OwnModule()
    trainer(PGBCallback()).validate(module, make_loader(16))
    predictions(trainer(PGBCallback()), module)
    assert not is_pruned(find_encoder(module))


def test_a_module_that_builds_itself_in_configure_model(trainer: MakeTrainer) -> None:
    class Late(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = classifier(layers=2).train()

    module = Late()
    trainer(PGBCallback()).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


def test_one_encoder_of_two_is_named(trainer: MakeTrainer) -> None:
    class Two(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = classifier("roberta")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.net.parameters())

    with pytest.raises(MisconfigurationException, match=r"holds 2 encoders; .*'net.bert', 'teacher.roberta'"):
        trainer(PGBCallback()).fit(Two(), make_loader())
    module = Two()
    trainer(PGBCallback(encoder="net.bert")).fit(module, make_loader())
    assert is_pruned(find_encoder(module, "net"))
    assert not is_pruned(find_encoder(module, "teacher"))


def test_what_was_achieved_is_said_and_logged(
    trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, pgb = OwnModule(), PGBCallback(0.7)
    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer(pgb, logger=logger, log_every_n_steps=1).fit(module, make_loader())
    text = caplog.text
    assert pgb.plan is not None
    assert f"PGB removed {pgb.plan.pruning_ratio:.2%} of {pgb.plan.total_parameters:,} encoder weights" in text
    assert "PGB plan: 70." in text or "PGB plan: 69." in text
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert float(first["pgb/encoder_parameters"]) == pgb.plan.kept_parameters
    assert float(first["pgb/pruning_ratio"]) == pytest.approx(pgb.plan.pruning_ratio, abs=1e-6)
    assert "train_loss" in ",".join(rows[0].split(","))


def test_progress_is_shown_where_the_trainer_shows_progress(
    trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(PGBCallback(), enable_progress_bar=True).fit(OwnModule(), make_loader())
    shown = capsys.readouterr().err
    assert "PGB calibration" in shown
    assert "PGB compensation" in shown
    trainer(PGBCallback()).fit(OwnModule(), make_loader())
    assert "PGB" not in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["default", "balanced"])
def test_groups_by_compensation(trainer: MakeTrainer, preset: str) -> None:
    module, pgb = OwnModule(), PGBCallback(preset=preset, permutation="compensated")
    trainer(pgb).fit(module, make_loader())
    assert pgb.plan is not None
    assert pgb.plan.config["permutation"] == "compensated"
    assert pgb.plan.pruning_ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_mixed_precision_trains_the_grouped_layers(trainer: MakeTrainer, precision: Any) -> None:
    module = OwnModule()
    trainer(PGBCallback(), precision=precision).fit(module, make_loader(), make_loader(16))
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruning_ratio": 0.0}, "pruning_ratio=0.0 is out of range"),
        ({"pruning_ratio": 1.2}, "pruning_ratio=1.2 is out of range"),
        ({"max_groups": 0}, "max_groups=0 is out of range"),
        ({"preset": "best"}, "preset='best' is unknown; choose one of 'default', 'balanced', 'paper'"),
        ({"permutation": "none"}, "permutation='none' is unknown"),
        ({"importance_threshold": "low"}, "importance_threshold='low' must be a number"),
        ({"calibration_size": 0}, "calibration_size=0 is out of range: it must be a whole number of at least 1"),
    ],
)
def test_a_bad_setting_is_refused_when_the_callback_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"PGBCallback: {message}"):
        PGBCallback(**settings)


class NoData(L.LightningDataModule):
    """Fails if anyone asks for data."""

    def train_dataloader(self) -> Any:
        raise AssertionError("no data may be read")


class Headless(OwnModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # type: ignore[assignment]


def test_a_module_that_cannot_be_pruned_is_refused_before_any_data(trainer: MakeTrainer) -> None:
    def refused(module: L.LightningModule, pgb: PGBCallback, message: str) -> None:
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(MisconfigurationException, match=message):
            trainer(pgb).fit(module, datamodule=NoData())
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())

    refused(Headless(nn.Linear(2, 2)), PGBCallback(), "Headless holds no transformers encoder")
    refused(OwnModule(), PGBCallback(encoder="net.bart"), "encoder='net.bart' is no attribute path")
    refused(
        OwnModule(),
        PGBCallback(0.95, "balanced", max_groups=1),
        r"pruning_ratio=0.95 cannot be reached.* ratio is 0.9167",
    )
    grouped = OwnModule()
    trainer(PGBCallback()).fit(grouped, make_loader())
    refused(grouped, PGBCallback(), "is grouped already and cannot be pruned again")


def test_a_poisoned_batch_is_named_and_the_module_left_whole(trainer: MakeTrainer) -> None:
    class Poisoned(OwnModule):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return super().loss(batch) * (float("nan") if not self.training and self.steps == 2 else 1)

    module = Poisoned()
    with pytest.raises(MisconfigurationException, match="calibration batch 2: the loss is nan"):
        trainer(PGBCallback()).fit(module, make_loader())
    assert not is_pruned(find_encoder(module))
    assert module.steps == 0
    # The trainer's strategy is as it was: a later fit without the callback trains the dense module.
    fixed = trainer()
    fixed.fit(module, make_loader())
    assert not is_pruned(find_encoder(module))


def test_a_module_that_builds_itself_in_setup(trainer: MakeTrainer) -> None:
    class Late(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def setup(self, stage: str) -> None:
            self.net = classifier(layers=2).train()

    module = Late()
    trainer(PGBCallback()).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


@pytest.mark.parametrize("pruning_first", [True, False])
def test_weight_averaging_is_refused_and_works_in_a_fit_of_its_own(trainer: MakeTrainer, pruning_first: bool) -> None:
    callbacks = [PGBCallback(), EMAWeightAveraging()]
    with pytest.raises(MisconfigurationException, match="cannot share a fit with StochasticWeightAveraging"):
        trainer(PGBCallback(), StochasticWeightAveraging(1e-3)).fit(OwnModule(), datamodule=NoData())
    with pytest.raises(MisconfigurationException, match="cannot share a fit with EMAWeightAveraging"):
        trainer(*(callbacks if pruning_first else reversed(callbacks))).fit(OwnModule(), datamodule=NoData())
    module = OwnModule()
    trainer(PGBCallback(), max_epochs=0).fit(module, make_loader())
    assert is_pruned(find_encoder(module))
    trainer(EMAWeightAveraging()).fit(module, make_loader())


def test_a_fit_that_failed_leaves_the_strategy_as_it_was(trainer: MakeTrainer, tmp_path: Path) -> None:
    failing, module = trainer(PGBCallback()), OwnModule()
    with pytest.raises(FileNotFoundError):
        failing.fit(module, make_loader(), ckpt_path=tmp_path / "none.ckpt")
    assert not {"setup", "load_checkpoint", "load_model_state_dict"} & vars(failing.strategy).keys()
    failing.callbacks = []  # type: ignore[attr-defined]
    failing.fit(module, make_loader())
    assert not is_pruned(find_encoder(module))


def test_an_optimizer_from_before_the_pruning_is_refused(trainer: MakeTrainer) -> None:
    class Early(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.made = [torch.optim.AdamW(self.parameters())]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.made[0]

    with pytest.raises(MisconfigurationException, match=r"optimizers with \d+ parameters that are not the"):
        trainer(PGBCallback()).fit(Early(), make_loader())


def test_an_encoder_without_dropout_is_mentioned(trainer: MakeTrainer) -> None:
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
        with pytest.warns(
            UserWarning, match=r"the encoder is in eval mode, .* without dropout; call \.train\(\) on it"
        ):
            trainer(PGBCallback(0.5)).fit(module, make_loader())
    for module in (OwnModule(), TrainsLater(), WithoutAny()):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*without dropout")
            trainer(PGBCallback(0.5)).fit(module, make_loader())
