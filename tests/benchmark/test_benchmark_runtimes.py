"""``pgb benchmark --runtimes``: dense and pruned models in several runtimes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers.tiny import classifier, pruned
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console

from pgb_lightning import benchmark
from pgb_lightning.benchmark import command
from pgb_lightning.benchmark.runtimes import Runtime, loaded_runs, measure_runs
from pgb_lightning.runtimes import requirements

QUICK: dict[str, Any] = {"batch_sizes": (2,), "lengths": (8,), "repeats": 2, "min_time": 0.001}

#: The models of these tests have one layer, and there are few, since writing files is slow.
MODELS = {"dense": classifier(layers=1).eval(), "narrow 0.5": pruned("bert", layers=1)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "random_model", lambda *_: MODELS["dense"])
    monkeypatch.setattr(command, "pruned_models", lambda *_: MODELS)


def test_the_table_compares_with_pytorch_and_within_a_runtime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = benchmark.run(out_dir=str(tmp_path), runtimes=("torch-bf16",), **QUICK)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == json.loads(json.dumps(found))
    [row] = found["latency"]
    assert row.keys() == {"batch_size", "length", "runtimes"}
    assert list(row["runtimes"]) == ["torch", "torch-bf16"]
    reference = row["runtimes"]["torch"]["dense"]
    assert (reference["speedup"], reference["speedup_over_torch"]) == (1, 1)
    half = row["runtimes"]["torch-bf16"]
    assert half["narrow 0.5"]["speedup"] == pytest.approx(half["dense"]["median"] / half["narrow 0.5"]["median"])
    expected = reference["median"] / half["narrow 0.5"]["median"]
    assert half["narrow 0.5"]["speedup_over_torch"] == pytest.approx(expected)
    assert half["narrow 0.5"]["low"] <= half["narrow 0.5"]["median"] <= half["narrow 0.5"]["high"]
    assert MODELS["dense"].dtype == torch.float32
    shown = capsys.readouterr().out
    assert "torch-bf16" in shown
    assert "narrow 0.5" in shown


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openvino", "nncf", "onnxruntime", "onnxscript")),
    reason="the extra openvino is not installed",
)
def test_every_runtime_runs_the_same_models(monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = {"dense": pruned("bert", layers=1)}
    batch = {"input_ids": torch.randint(5, 59, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    outputs: dict[str, torch.Tensor] = {}

    def call_once(runs: dict[str, Any], *_: object) -> dict[str, list[float]]:
        outputs.update({name: run()[0].float() for name, run in runs.items()})
        return {name: [1.0, 2.0] for name in runs}

    monkeypatch.setattr("pgb_lightning.benchmark.runtimes.measure_latency", call_once)
    with loaded_runs(models, get_args(Runtime), [batch], Console(quiet=True)) as runs:
        [row] = measure_runs(runs, [batch], 1, 0.001)
    assert set(row["runtimes"]) == set(get_args(Runtime))
    expected = outputs.pop("torch dense")
    assert len(outputs) == len(get_args(Runtime)) - 1
    for name, found in outputs.items():
        exact = name in ("onnxruntime dense", "openvino dense", "torch-export dense")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if exact else 0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtimes": ("tensorrt",)}, r"runtimes=\['tensorrt'\].*'openvino-bf16'"),
        ({"dtype": "bfloat16"}, r"dtype='bfloat16'.*runtimes=\['torch'\].*dtype='float32'"),
        ({"compiled": True}, r"compiled=True.*runtimes=\['torch'\].*compiled=False"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark.run(out_dir=str(tmp_path / "out"), **({"runtimes": ("torch",)} | QUICK | settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime-int8-dynamic", "onnx"), ("openvino", "openvino")])
def test_missing_packages_are_named(runtime: Any, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(MisconfigurationException, match=rf"runtimes=\['{runtime}'\].*pgb-lightning\[{extra}\]"):
        benchmark.run(out_dir=str(tmp_path / "out"), runtimes=(runtime,), **QUICK)
