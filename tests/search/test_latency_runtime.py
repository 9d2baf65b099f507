"""Latency in the runtime in which the pruned model is to be served."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_model
from helpers.plans import random_plan
from helpers.tiny import batches, classifier

from pgb_lightning import PruningConfig, latency, prune
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import encoder_for, layers_runner
from pgb_lightning.pruning import prepare
from pgb_lightning.runtimes import requirements
from pgb_lightning.runtimes.channel_layers import ChannelLinear
from pgb_lightning.search import latency_table
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.search.latency_table import measure_table, shape_key, table_setting
from pgb_lightning.surgery.apply import apply_plan

ONNX = PruningConfig(
    target_speedup=1.5, latency_batch_size=1, latency_length=8, latency_runtime="onnxruntime", max_groups=2
)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[torch.nn.Module]:
    """Run in PyTorch what would be exported; the list holds these modules."""
    found: list[torch.nn.Module] = []

    def load(modules: Iterable[torch.nn.Module], hidden: torch.Tensor, runtime: str) -> Iterator[Callable[[], Any]]:
        for module in modules:
            if runtime == "onnxruntime":
                found.append(module)
            yield lambda module=module: module(hidden)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "load_modules", load)
    monkeypatch.setattr(latency_table, "load_modules", load)
    monkeypatch.setattr(latency_table, "runtime_version", lambda runtime: f"1 of {runtime}")
    monkeypatch.setattr(requirements, "require_onnx", lambda *_: None)
    return found


def test_the_table_and_the_plan_are_measured_there(exported: list[torch.nn.Module], tmp_path: Path) -> None:
    model = classifier(layers=1)
    before = model.config._attn_implementation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The target may be missed, since times vary.
        plan = prune(model, batches(6), ONNX)
    assert plan.config["latency_runtime"] == "onnxruntime"
    encoders = [module for module in exported if type(module).__name__ == "_AllLayers"]
    assert len(encoders) >= 2  # the dense one, and that of at least one plan
    assert len(exported) - len(encoders) > 20  # shapes
    assert model.config._attn_implementation == before
    assert not any(isinstance(module, ChannelLinear) for module in model.modules())
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.usefixtures("exported")
def test_each_runtime_and_version_has_its_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = find_encoder(classifier(layers=1))
    settings = [table_setting(encoder, 1, 8), table_setting(encoder, 1, 8, "onnxruntime")]
    monkeypatch.setattr(latency_table, "runtime_version", lambda runtime: f"2 of {runtime}")
    settings.append(table_setting(encoder, 1, 8, "onnxruntime"))
    assert [setting["runtime_version"] for setting in settings] == [
        "1 of torch",
        "1 of onnxruntime",
        "2 of onnxruntime",
    ]
    assert settings[0]["runtime"] == "torch"
    assert len({str(setting) for setting in settings}) == 3


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])  # the second has pre-norm
def test_exported_shapes_compute_the_same(
    model_type: str, exported: list[torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shape once, in the layers for onnxruntime."""
    monkeypatch.setattr(latency, "NUM_CALLS", 1)
    model = tiny_model(model_type)
    encoder, config = find_encoder(model), PruningConfig(max_groups=2)
    statistics = calibrate(encoder, tiny_batches(2), model_loss(model), moments=True)
    found = list_candidates(encoder, statistics, config)[:2]
    table = measure_table(encoder, found, 1, 8, tmp_path, "onnxruntime")
    shapes: dict[str, Candidate] = {shape_key(one, encoder): one for options in found for one in options}
    assert len(exported) == len(table.seconds) == len(shapes)
    is_grouped = any(isinstance(part, ChannelLinear) for module in exported for part in module.layer.modules())
    assert is_grouped
    plain = [latency_table._Pruned(encoder, one, exported[0].arguments, False) for one in shapes.values()]
    hidden = latency.random_hidden_states(encoder, 1, 8)
    encoder.model.eval()
    with torch.no_grad():
        for module, expected in zip(exported, plain, strict=True):
            torch.testing.assert_close(module(hidden), expected.eval()(hidden), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["deberta-v2"])
def test_the_exported_layers_run(model_type: str) -> None:
    """Also those that read what the model computes once for all layers."""
    pytest.importorskip("onnxruntime")
    model = tiny_model(model_type).eval()
    encoder = find_encoder(model)
    apply_plan(encoder, random_plan(encoder, random.Random(3), ("narrow", "groups")))
    run = layers_runner(encoder, 2, 9, "onnxruntime")
    plain = layers_runner(encoder_for("onnxruntime", encoder), 2, 9)
    torch.testing.assert_close(run(), plain().detach(), rtol=0, atol=1e-4)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "onnxscript" else object())
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    with pytest.raises(ModuleNotFoundError, match=r"latency_runtime='onnxruntime'.*onnxscript.*pgb-lightning\[onnx\]"):
        prune(classifier(layers=1), iter(()), ONNX)


@pytest.mark.usefixtures("exported")
def test_other_data_types_and_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latency_runtime='onnxruntime'.*bfloat16"):
        prepare(classifier(layers=1).bfloat16(), ONNX)
    with pytest.raises(ValueError, match=r"latency_runtime='onnxruntime'.*'meta'"):
        prepare(classifier(layers=1).to("meta"), ONNX)


@pytest.mark.parametrize("settings", [{}, {"budget": "flops"}, {"pruning_ratio": 0.5}])
def test_a_runtime_without_a_budget_of_latency_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"latency_runtime='onnxruntime'.*budget="):
        PruningConfig(latency_runtime="onnxruntime", **settings)


def test_unknown_runtimes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latency_runtime='tvm'.*'torch', 'onnxruntime'"):
        PruningConfig(target_speedup=2.0, latency_runtime="tvm")  # type: ignore[arg-type]
