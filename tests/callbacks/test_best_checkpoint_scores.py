"""The best checkpoint holds the weights that were scored, whenever and wherever the metric is logged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import BestCheckpoint

NAN, INF = math.nan, math.inf


class Scripted(L.LightningModule):
    """Log a given value at each scoring (``None``: nothing), and note the weights that it scores."""

    def __init__(self, values: list[float | None], hook: str = "validation_step", name: str = "val_loss") -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.values, self.hook, self.name = values, hook, name
        self.scored: list[tuple[float, Tensor]] = []

    def score(self, hook: str) -> None:
        if hook != self.hook or self.trainer.sanity_checking:
            return
        value = self.values[len(self.scored) % len(self.values)]
        self.scored.append((NAN if value is None else value, self.net.weight.detach().clone()))
        if value is not None:
            self.log(self.name, torch.tensor(value), on_epoch=True)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 5:
            self.score("training_step")
        return self.net(batch).mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.score("validation_step")
        self.log("val_other", 1.0)

    def on_validation_epoch_end(self) -> None:
        self.score("on_validation_epoch_end")

    def on_train_epoch_end(self) -> None:
        self.score("on_train_epoch_end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, module: Scripted, callback: BestCheckpoint | None = None, **settings: Any) -> L.Trainer:
    """Fit for some epochs of 6 steps."""
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = quiet_trainer(
        callbacks=[callback or BestCheckpoint(str(folder), module.name), *settings.pop("callbacks", [])],
        enable_checkpointing=True,
        **{"max_epochs": 4, **settings},
    )
    data = DataLoader(torch.rand(6, 2))
    trainer.fit(module, data, DataLoader(torch.rand(2, 2)), ckpt_path=ckpt_path)
    return trainer


def weight(path: Path) -> Tensor:
    found: Tensor = torch.load(path, weights_only=True)["state_dict"]["net.weight"]
    return found


@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_end", "on_train_epoch_end"])
@pytest.mark.parametrize(
    "values",
    [[3.0, 1.0, 2.0, 4.0], [NAN, None, 2.0, None, 3.0], [INF, 3.0, -INF, NAN, None, 2.0]],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"check_val_every_n_epoch": 2, "max_epochs": 9},
        {"val_check_interval": 0.5},
        {"val_check_interval": 4},
        {"val_check_interval": 5, "check_val_every_n_epoch": None, "max_epochs": 5},
        {"accumulate_grad_batches": 4, "val_check_interval": 3},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_the_best_checkpoint_holds_the_scored_weights(
    hook: str, values: list[float | None], settings: dict[str, Any], tmp_path: Path
) -> None:
    module = Scripted(values, hook)
    trainer = fit(tmp_path, module, **settings)
    best = min(score for score, _ in module.scored if math.isfinite(score))
    expected = next(weights for score, weights in module.scored if score == best)
    assert torch.equal(weight(tmp_path / "best.ckpt"), expected)
    assert torch.equal(weight(tmp_path / "last.ckpt"), module.net.weight)
    callback = trainer.checkpoint_callback
    assert isinstance(callback, BestCheckpoint)
    assert callback.best_model_score == best
    assert callback.best_model_path == str(tmp_path / "best.ckpt")


def test_a_metric_of_the_training_counts_when_the_epoch_is_over(tmp_path: Path) -> None:
    module = Scripted([2.0, 1.0, 3.0, 4.0], "training_step", "train_loss")
    fit(tmp_path, module, val_check_interval=0.5)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 12


def test_a_fit_that_is_stopped_within_an_epoch_keeps_what_was_scored(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 9

    class Fail(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            assert trainer.global_step < 9

    module = Scripted([2.0, 1.0])
    fit(tmp_path / "stopped", module, callbacks=[Stop()])
    assert torch.equal(weight(tmp_path / "stopped" / "best.ckpt"), module.scored[1][1])
    assert torch.equal(weight(tmp_path / "stopped" / "last.ckpt"), module.net.weight)
    module = Scripted([2.0, 1.0])
    with pytest.raises(AssertionError):
        fit(tmp_path / "failed", module, callbacks=[Fail()])
    for name in ("best", "last"):
        assert torch.equal(weight(tmp_path / "failed" / f"{name}.ckpt"), module.scored[0][1])


@pytest.mark.parametrize(
    ("values", "words"),
    [([NAN], "'val_loss' is nan in epoch 0"), ([INF], "'val_loss' is inf"), ([None], r"'val_loss' .*'val_other'")],
)
def test_without_any_score_only_the_last_epoch_is_saved(
    values: list[float | None], words: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    module = Scripted(values)
    with pytest.warns(UserWarning, match=words):
        fit(tmp_path, module, max_epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    (tmp_path / "best.ckpt").write_bytes(b"another run's")
    with pytest.warns(UserWarning, match=r"best\.ckpt was not saved.*another run"):
        fit(tmp_path, module, max_epochs=2)
    assert (tmp_path / "best.ckpt").read_bytes() == b"another run's"


def test_a_similar_name_is_suggested(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"'val_other_loss'.*mean 'val_other'"):
        fit(tmp_path, Scripted([1.0]), BestCheckpoint(str(tmp_path), "val_other_loss"), max_epochs=1)


def test_epochs_without_validation_say_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    fit(tmp_path, Scripted([2.0]), check_val_every_n_epoch=2)
    assert not any("BestCheckpoint" in str(warning.message) for warning in recwarn)
    fit(tmp_path, Scripted([2.0]), limit_val_batches=0)
    assert any("was never logged" in str(warning.message) for warning in recwarn)


def test_several_validation_loaders(tmp_path: Path) -> None:
    module = Scripted([3.0, 4.0, 1.0, 2.0])  # of the two loaders in turn
    callback = BestCheckpoint(str(tmp_path), "val_loss/dataloader_idx_1")
    loaders = [DataLoader(torch.rand(2, 2))] * 2
    quiet_trainer(callbacks=[callback], enable_checkpointing=True, max_epochs=4, num_sanity_val_steps=0).fit(
        module, DataLoader(torch.rand(6, 2)), loaders
    )
    assert callback.best_model_score == 2.0
    assert torch.equal(weight(tmp_path / "best.ckpt"), module.scored[3][1])


def test_values_that_are_not_single_numbers_do_not_count(tmp_path: Path) -> None:
    class Direct(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.callback_metrics["val_acc"] = torch.ones(2) if trainer.current_epoch else 0.5  # type: ignore[assignment]

    callback = BestCheckpoint(str(tmp_path), "val_acc")
    with pytest.warns(UserWarning, match="'val_acc' is None in epoch 1"):
        fit(tmp_path, Scripted([None]), callback, callbacks=[Direct()], num_sanity_val_steps=0)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 0


def test_a_resumed_run_keeps_the_best_so_far(tmp_path: Path) -> None:
    module = Scripted([2.0, 1.0, 3.0])
    fit(tmp_path, module, max_epochs=3)
    before = weight(tmp_path / "best.ckpt")
    resumed = Scripted([2.0])
    fit(tmp_path, resumed, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weight(tmp_path / "best.ckpt"), before)
    assert torch.equal(weight(tmp_path / "last.ckpt"), resumed.net.weight)
    better = Scripted([0.5])
    fit(tmp_path, better, max_epochs=6, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weight(tmp_path / "best.ckpt"), better.net.weight)


def test_what_a_resumed_run_cannot_keep_is_said(tmp_path: Path) -> None:
    fit(tmp_path, Scripted([2.0], name="val_cost"), BestCheckpoint(str(tmp_path), "val_cost", mode="max"), max_epochs=1)
    last = tmp_path / "last.ckpt"
    with pytest.warns(UserWarning, match=r"mode='max'.*mode='min'"):
        fit(tmp_path, Scripted([3.0]), BestCheckpoint(str(tmp_path), "val_loss"), max_epochs=2, ckpt_path=last)
    (tmp_path / "best.ckpt").unlink()
    module = Scripted([4.0])
    with pytest.warns(UserWarning, match=r"best\.ckpt is missing"):
        fit(tmp_path, module, max_epochs=3, ckpt_path=last)
    assert torch.equal(weight(tmp_path / "best.ckpt"), module.net.weight)


def test_the_same_object_starts_over_in_a_new_run(tmp_path: Path) -> None:
    callback = BestCheckpoint(str(tmp_path), "val_loss")
    for value in (1.0, 2.0):
        module = Scripted([value])
        fit(tmp_path, module, callback, max_epochs=1)
        assert torch.equal(weight(tmp_path / "best.ckpt"), module.net.weight)


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"max_epochs": 0}])
def test_runs_without_epochs_save_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    fit(tmp_path, Scripted([NAN]), **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"monitor": "val_loss", "mode": "max"}, "mode='max'.*'val_loss'.*lowest"),
        ({"monitor": "val_f1", "mode": "min"}, "mode='min'.*'val_f1'.*highest"),
        ({"monitor": "val_loss", "mode": "auto"}, "mode='auto'"),
        ({"monitor": "val_metric"}, "'val_metric'.*mode='max'"),
        ({"monitor": ""}, "monitor=''"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=words):
        BestCheckpoint(str(tmp_path), **settings)


def test_two_callbacks_with_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="dirpath="):
        fit(tmp_path, Scripted([1.0]), callbacks=[BestCheckpoint(str(tmp_path), "val_other_loss")])


def test_an_inferred_loss_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert BestCheckpoint(str(tmp_path), "val_loss").mode == "min"
    assert "mode='min'" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        BestCheckpoint(str(tmp_path), "val_accuracy")
        BestCheckpoint(str(tmp_path), "val_loss", mode="min")
    assert not caplog.text
