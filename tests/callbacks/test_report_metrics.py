"""PGBReport with metrics that are NaN, infinite, missing, late or unusual, and failures that must not end the fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader
from torch import Tensor
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import PGBCallback, PGBReport, report

MakeTrainer = Callable[..., L.Trainer]


class Logs(OwnModule):
    """Log a given value under a given name after each validation (``None``: nothing)."""

    def __init__(self, values: list[float | None], name: str = "val_score") -> None:
        super().__init__()
        self.values, self.name, self.validations = values, name, 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log nothing."""

    def on_validation_epoch_end(self) -> None:
        value = self.values[self.validations % len(self.values)]
        self.validations += 1
        if value is not None:
            self.log(self.name, value)


def refuse(constant: str) -> None:
    raise AssertionError(f"report.json holds {constant}")


def reported(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    return found


def fit(
    trainer: MakeTrainer, folder: Path, module: L.LightningModule, *callbacks: Any, **settings: Any
) -> dict[str, Any]:
    loaders = settings.pop("loaders", make_loader(8))
    callback = PGBReport(output_dir=str(folder / "out"), latency=False)
    trainer(callback, PGBCallback(0.5), *callbacks, **settings).fit(module, make_loader(16), loaders)
    return reported(folder / "out")


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_scores_that_are_not_finite_are_shown(value: float, text: str, trainer: MakeTrainer, tmp_path: Path) -> None:
    found = fit(trainer, tmp_path, Logs([value]), num_sanity_val_steps=-1)
    assert found["scores"]["pruned"] == found["scores"]["re-finetuned"] == {"val_score": text}
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert ("<td>NaN" in page.replace("\n", "")) is (text == "NaN")


def test_a_missing_metric_is_not_measured(trainer: MakeTrainer, tmp_path: Path) -> None:
    found = fit(trainer, tmp_path, Logs([None]), num_sanity_val_steps=-1)
    assert found["scores"] == {"dense": {}, "pruned": {}, "re-finetuned": {}}
    assert "not measured" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_scores_of_the_training_are_no_validation_scores(trainer: MakeTrainer, tmp_path: Path) -> None:
    found = fit(trainer, tmp_path, Logs([0.5], name="accuracy"), max_epochs=2)
    assert found["scores"]["re-finetuned"] == {"accuracy": 0.5}


def test_a_metric_of_some_validations_is_not_shown_for_later_weights(trainer: MakeTrainer, tmp_path: Path) -> None:
    module = Logs([0.5, None])
    module.validation_step = lambda batch, batch_idx: module.log("val_other", 1.0)  # type: ignore[method-assign]
    found = fit(trainer, tmp_path, module, max_epochs=2)
    assert found["scores"]["re-finetuned"] == {"val_other": 1.0}


def test_an_earlier_score_is_said(trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"step 4, .*step 6"):
        found = fit(trainer, tmp_path, Logs([0.5]), check_val_every_n_epoch=2, max_epochs=3)
    assert found["scores"]["re-finetuned"] == {"val_score": 0.5}


@pytest.mark.parametrize("settings", [{"limit_val_batches": 0}, {"loaders": None}, {"max_epochs": 0}])
def test_without_validation_nothing_is_measured(settings: dict[str, Any], trainer: MakeTrainer, tmp_path: Path) -> None:
    assert fit(trainer, tmp_path, Logs([0.5]), **settings)["scores"]["re-finetuned"] == {}


def test_a_sanity_check_of_some_loaders_gives_no_score(trainer: MakeTrainer, tmp_path: Path) -> None:
    loaders: list[DataLoader[Any]] = [make_loader(8), make_loader(32)]
    found = fit(trainer, tmp_path, Logs([0.5]), num_sanity_val_steps=2, loaders=loaders)
    assert found["scores"]["pruned"] == {}


def test_values_that_are_not_single_numbers_are_left_out(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Direct(L.Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.callback_metrics.update(val_matrix=torch.ones(2, 2), val_count=torch.tensor(3))

    found = fit(trainer, tmp_path, Logs([0.5]), Direct())
    assert found["scores"]["re-finetuned"] == {"val_score": 0.5, "val_count": 3.0}


@pytest.mark.parametrize(
    "name", ["measure_layer_latency", "count_flops", "error_table", "results_table", "write_report"]
)
def test_a_report_that_fails_does_not_end_the_fit(
    name: str, trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **settings: Any) -> None:
        raise ZeroDivisionError("no such number")

    monkeypatch.setattr(report, name, fail)
    module = OwnModule()
    with pytest.warns(UserWarning, match=r"PGBReport could not .*ZeroDivisionError: no such number"):
        trainer(PGBReport(output_dir=str(tmp_path)), PGBCallback(0.5)).fit(module, make_loader(16), make_loader(8))
    assert module.steps == 2


def test_a_barebones_trainer_measures_no_scores(tmp_path: Path) -> None:
    callback = PGBReport(output_dir=str(tmp_path), latency=False)
    L.Trainer(accelerator="cpu", barebones=True, max_epochs=1, callbacks=[callback, PGBCallback(0.5)]).fit(
        OwnModule(), make_loader(16), make_loader(8)
    )
    assert reported(tmp_path)["scores"]["re-finetuned"] == {}
