"""A speed-up as the target: it is budgeted, measured, said and logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from helpers.own import OwnModule, make_loader
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks import PGBCallback, pgb
from pgb_lightning.search import speedup
from pgb_lightning.search.latency_table import LatencyTable

MakeTrainer = Callable[..., L.Trainer]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_speed_up_is_measured_said_and_logged(
    trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([3.0, 1.2])  # before and after
    monkeypatch.setattr(pgb, "time_encoder", lambda *_: next(seconds))
    callback = PGBCallback(target_speedup=2.0, latency_batch_size=2, latency_length=16)
    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO):
        trainer(callback, logger=logger).fit(OwnModule(), make_loader())
    assert "layers are 2.50 times faster at batch 2 x length 16 (target 2.00)" in caplog.text
    assert "as planned" in caplog.text  # and not measured against a share of the weights
    assert "2.5" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert callback.plan is not None
    assert callback.plan.config["target_speedup"] == 2.0
    assert list((tmp_path / "cache" / "pgb_lightning" / "latency").glob("*.json"))


def test_another_precision_than_the_measured_one_is_said(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda *_: 0.5)
    callback = PGBCallback(target_speedup=2.0, latency_batch_size=1, latency_length=4)
    with pytest.warns(UserWarning, match=r"measured in the precision that the module was built in; with .*bf16-mixed"):
        trainer(callback, precision="bf16-mixed").fit(OwnModule(), make_loader())


def test_time_is_what_is_budgeted(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table in which attention takes no time, no attention is pruned."""
    monkeypatch.setattr(LatencyTable, "__call__", lambda _, c: 0.0 if c.sublayer == "attention" else c.parameters)
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda *_: 0.5)
    callback = PGBCallback(target_speedup=2.0, latency_batch_size=1, latency_length=4)
    trainer(callback).fit(OwnModule(), make_loader())
    plan = callback.plan
    assert plan is not None
    assert all(plan.matrix(layer, kind).kept_share == 1 for layer in range(2) for kind in "QKVO")
    kept = [plan.matrix(layer, kind).kept_parameters for layer in range(2) for kind in ("W1", "W2")]
    total = sum(plan.matrix(layer, kind).total_parameters for layer in range(2) for kind in ("W1", "W2"))
    assert abs(sum(kept) / total - 0.5) < 0.03


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_speedup": 1.0}, "target_speedup=1.0 is out of range: it must be above 1"),
        ({"target_speedup": 2.0, "pruning_ratio": 0.5}, "pruning_ratio=0.5 and target_speedup=2.0 are two targets"),
        ({"target_speedup": 2.0, "preset": "paper"}, "target_speedup=2.0 needs search='shapes'"),
        ({"budget": "flops", "preset": "paper"}, "budget='flops' needs search='shapes'"),
        ({"budget": "watts"}, "budget='watts' is unknown; choose one of 'parameters', 'flops', 'latency'"),
        ({"budget": "latency", "latency_length": 0}, "latency_length=0 is out of range"),
        ({"target_speedup": 2.0, "plan": "plan.json"}, "has decided what is pruned, so target_speedup=2.0"),
    ],
)
def test_targets_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PGBCallback(**settings)
