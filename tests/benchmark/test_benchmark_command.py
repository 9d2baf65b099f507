"""The command ``pgb benchmark``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_model
from helpers.kinds import SUBLAYERS
from helpers.tiny import classifier

from pgb_lightning import benchmark
from pgb_lightning.benchmark import command, measures
from pgb_lightning.benchmark.measures import peak_memory as real_peak_memory
from pgb_lightning.benchmark.models import narrow_plan
from pgb_lightning.benchmark.tables import realized_savings
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.surgery.apply import apply_plan

QUICK: dict[str, Any] = {"batch_sizes": (2,), "lengths": (8,), "repeats": 2, "min_time": 0.001}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Benchmark tiny models, and skip peak memory, which takes one process per model."""

    def models(*args: object) -> dict[str, Any]:
        dense, narrow = classifier(layers=1), classifier(layers=1)
        [encoder] = find_encoders(narrow)
        apply_plan(encoder, narrow_plan(encoder, 0.5))
        return {"dense": dense.eval(), "narrow 0.5": narrow.eval()}

    threads = torch.get_num_threads()
    monkeypatch.setattr(command, "random_model", lambda *_: classifier(layers=1).eval())
    monkeypatch.setattr(command, "pruned_models", models)
    monkeypatch.setattr(measures, "peak_memory", lambda model, batch: 1_000_000 + batch["input_ids"].numel())
    yield
    torch.set_num_threads(threads)


def test_all_results_are_written_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = benchmark.run(out_dir=str(tmp_path), num_threads=1, **QUICK)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == json.loads(json.dumps(found))
    [row] = found["latency"]
    assert row["eager"]["dense"]["speedup"] == 1
    narrow = row["eager"]["narrow 0.5"]
    assert narrow["speedup"] == pytest.approx(row["eager"]["dense"]["median"] / narrow["median"])
    assert narrow["low"] <= narrow["median"] <= narrow["high"]
    assert row["sublayers"].keys() == {"attention", "ffn"}
    assert found["training"]["narrow 0.5"]["median"] > 0
    sizes = found["models"]["narrow 0.5"]
    assert sizes["kept"] == pytest.approx(0.5, abs=0.03)
    assert sizes["bytes_kept"] == pytest.approx(0.5, abs=0.06)  # biases and LayerNorms weigh more in a tiny model
    assert sizes["peak_memory_bytes"] == 1_000_016
    assert found["machine"]["threads"] == 1
    shown = capsys.readouterr().out
    assert "batch 2 x length 8" in shown
    assert f"{narrow['speedup']:.2f}" in shown
    assert "<svg" in (tmp_path / "benchmark.svg").read_text()


@pytest.mark.parametrize("what", ["classifier", "reader"])
def test_a_checkpoint_is_measured_against_its_dense_twin(
    what: str, pruned_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "pruned_models", lambda dense, *_: {"dense": dense})
    found = benchmark.run(ckpt_path=str(pruned_checkpoint(what)), out_dir=str(tmp_path / "out"), **QUICK)
    assert found["models"]["dense"]["kept"] == 1
    assert found["models"]["checkpoint"]["kept"] == pytest.approx(0.5, abs=0.05)
    assert found["training"]["checkpoint"]["median"] > 0
    assert "checkpoint" in (tmp_path / "out" / "benchmark.svg").read_text().replace("&#160;", " ")


def test_training_times_restore_the_models(tmp_path: Path) -> None:
    models = command.pruned_models()  # type: ignore[call-arg]
    modes = {name: model.training for name, model in models.items()}
    batch = {"input_ids": torch.randint(5, 9, (2, 4))}
    measures.training_times(models, batch, 1, 0.001)
    assert {name: model.training for name, model in models.items()} == modes
    assert all(parameter.grad is None for model in models.values() for parameter in model.parameters())


def test_compiled_models_are_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)  # type: ignore[func-returns-value]
    found = benchmark.run(out_dir=str(tmp_path), compiled=True, training=False, **QUICK)
    assert found["latency"][0]["compiled"].keys() == {"dense", "narrow 0.5"}
    assert modes == ["default"] * 2
    assert "training" not in found
    benchmark.run(out_dir=str(tmp_path), compiled=True, compile_mode="reduce-overhead", training=False, **QUICK)
    assert modes[2:] == ["reduce-overhead"] * 2


def test_a_compile_mode_without_compilation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile_mode='reduce-overhead'"):
        benchmark.run(out_dir=str(tmp_path / "out"), compile_mode="reduce-overhead", **QUICK)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["modernbert", "mpnet", "distilbert"])
def test_sublayers_get_the_arguments_of_their_layers(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    batch, seen = tiny_batches(1, padding="none")[0], []
    run = type(encoder).run

    def record(self: Any, layer: Any, sublayer: str, hidden: torch.Tensor, arguments: Any) -> torch.Tensor:
        seen.append((self.layers.index(layer), sublayer, sorted(arguments)))
        return run(self, layer, sublayer, hidden, arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(encoder), "run", record)
    times = measures.sublayer_times({"dense": model}, batch, 1, 0.0001)
    assert times["attention"]["dense"][0] > 0
    needed = sorted(encoder.family.arguments) if encoder.family.needs_arguments else []
    assert set(map(str, seen)) == {str((layer, sublayer, needed)) for layer in encoder.order for sublayer in SUBLAYERS}


@pytest.mark.slow
def test_peak_memory() -> None:
    model, batch = classifier(layers=1).eval(), {"input_ids": torch.randint(5, 9, (2, 4))}
    assert (real_peak_memory(model, batch) or 0) > 0


def test_realized_savings() -> None:
    assert realized_savings(speedup=1.0, flops=0.5) == 0
    assert realized_savings(speedup=0.8, flops=0.5) == pytest.approx(-0.5)
    assert realized_savings(speedup=4.0, flops=0.25) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": (0,)}, r"batch_sizes=\[0\]"),
        ({"lengths": ()}, r"lengths=\[\]"),
        ({"lengths": (4000,)}, "lengths=4000"),
        ({"repeats": 0}, "repeats=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"device": "meta"}, "device='meta'"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"pruning_ratios": (1.0,)}, r"pruning_ratios=\[1\.0\]"),
        ({"plan": "nowhere.json"}, r"plan='nowhere\.json'"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark.run(out_dir=str(tmp_path / "out"), **(QUICK | settings))
    assert not (tmp_path / "out").exists()
