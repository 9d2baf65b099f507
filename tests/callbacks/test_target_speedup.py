"""A target speedup: budgeted, measured, printed and logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pgb_lightning import latency
from pgb_lightning.callbacks import PGBCallback, pgb
from pgb_lightning.runtimes import requirements
from pgb_lightning.search import latency_table, speedup
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


def test_another_runtime_measures_the_speedup(
    trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is budgeted, corrected and reported is measured there."""
    loaded: list[str] = []

    def load(modules: Iterable[nn.Module], hidden: Tensor, runtime: str) -> Iterator[Callable[[], Any]]:
        for module in modules:
            loaded.append(f"{type(module).__name__} {runtime}")
            yield partial(module, hidden)

    monkeypatch.setattr(latency, "load_modules", load)
    monkeypatch.setattr(latency_table, "load_modules", load)
    monkeypatch.setattr(latency_table, "runtime_version", lambda _: "1")
    monkeypatch.setattr(requirements, "require_onnx", lambda *_: None)
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda *_: 0.5)
    callback = PGBCallback(
        target_speedup=2.0, latency_batch_size=1, latency_length=4, latency_runtime="onnxruntime", max_groups=1
    )
    with caplog.at_level(logging.INFO):
        trainer(callback).fit(OwnModule(), make_loader())
    assert set(loaded) == {"_Pruned onnxruntime", "_AllLayers onnxruntime"}
    assert loaded.count("_AllLayers onnxruntime") == 2  # before and after
    assert "batch 1 x length 4 in onnxruntime" in caplog.text
    assert callback.plan is not None
    assert callback.plan.config["latency_runtime"] == "onnxruntime"


def test_what_a_runtime_needs_is_checked_before_any_work(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = PGBCallback(target_speedup=2.0, latency_runtime="onnxruntime")
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MisconfigurationException, match=r"latency_runtime='onnxruntime'.*pgb-lightning\[onnx\]"):
        trainer(callback).fit(OwnModule(), iter(()))
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cuda", 0))
    with pytest.raises(MisconfigurationException, match=r"latency_runtime='onnxruntime'.*'cuda'"):
        callback.setup(trainer(callback), OwnModule(), "fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_speedup": 1.0}, r"target_speedup=1\.0"),
        ({"target_speedup": 2.0, "pruning_ratio": 0.5}, r"pruning_ratio=0\.5.*target_speedup=2\.0"),
        ({"target_speedup": 2.0, "preset": "paper"}, r"target_speedup=2\.0.*search='shapes'"),
        ({"budget": "flops", "preset": "paper"}, r"budget='flops'.*search='shapes'"),
        ({"budget": "watts"}, r"budget='watts'.*'parameters', 'flops', 'latency'"),
        (
            {"pruning_ratio": 0.5, "latency_runtime": "onnxruntime"},
            r"latency_runtime='onnxruntime'.*budget='parameters'",
        ),
        ({"budget": "latency", "latency_length": 0}, "latency_length=0"),
        ({"target_speedup": 2.0, "plan": "plan.json"}, r"plan='plan\.json'.*target_speedup=2\.0"),
    ],
)
def test_invalid_targets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PGBCallback(**settings)
