"""A target speedup: budgeted, measured, printed and logged."""

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


def test_the_speedup_is_measured_printed_and_logged(
    trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([3.0, 1.2])  # before and after
    monkeypatch.setattr(pgb, "measure_seconds", lambda *_: next(seconds))
    callback = PGBCallback(target_speedup=2.0, latency_batch_size=2, latency_length=16)
    logger = CSVLogger(tmp_path)
    with caplog.at_level(logging.INFO):
        trainer(callback, logger=logger).fit(OwnModule(), make_loader())
    assert "2.50" in caplog.text
    assert "batch 2 x length 16" in caplog.text
    assert "2.5" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert callback.plan is not None
    assert callback.plan.config["target_speedup"] == 2.0
    assert list((tmp_path / "cache" / "pgb_lightning" / "latency").glob("*.json"))


def test_another_precision_is_a_warning(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda *_: 0.5)
    callback = PGBCallback(target_speedup=2.0, latency_batch_size=1, latency_length=4)
    with pytest.warns(UserWarning, match="bf16-mixed"):
        trainer(callback, precision="bf16-mixed").fit(OwnModule(), make_loader())


def test_time_is_budgeted(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ({"target_speedup": 1.0}, r"target_speedup=1\.0"),
        ({"target_speedup": 2.0, "pruning_ratio": 0.5}, r"pruning_ratio=0\.5.*target_speedup=2\.0"),
        ({"target_speedup": 2.0, "preset": "paper"}, r"target_speedup=2\.0.*search='shapes'"),
        ({"budget": "flops", "preset": "paper"}, r"budget='flops'.*search='shapes'"),
        ({"budget": "watts"}, r"budget='watts'.*'parameters', 'flops', 'latency'"),
        ({"budget": "latency", "latency_length": 0}, "latency_length=0"),
        ({"target_speedup": 2.0, "plan": "plan.json"}, r"plan='plan\.json'.*target_speedup=2\.0"),
    ],
)
def test_invalid_targets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PGBCallback(**settings)
