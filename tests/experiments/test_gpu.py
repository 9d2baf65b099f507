"""All measurements of a GPU in one run, tried on a CPU with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import classifier
from transformers import BertConfig

from pgb_lightning.benchmark import command, measures
from pgb_lightning.experiments import families as published
from pgb_lightning.experiments import gpu, pruning_time


@pytest.fixture
def compile_modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace full sizes by tiny ones, and record the modes of ``torch.compile`` instead of compiling."""
    modes: list[str] = []

    def compile_nothing(model: Any, mode: str) -> Any:
        modes.append(mode)
        return model

    def tiny(*_: object) -> BertConfig:
        return BertConfig(
            vocab_size=60, hidden_size=24, num_attention_heads=2, intermediate_size=48, num_hidden_layers=1
        )

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(measures, "peak_memory", lambda *_: None)
    monkeypatch.setattr(pruning_time, "full_size_config", tiny)
    for module in (command, gpu, published):
        monkeypatch.setattr(module, "random_model", lambda *_: classifier(layers=1).eval())
    return modes


def test_every_section_is_measured_and_written(tmp_path: Path, compile_modes: list[str]) -> None:
    out = tmp_path / "gpu.json"
    found = gpu.run(
        device="cpu",
        num_layers=1,
        dtypes=("float32", "bfloat16"),
        batch_sizes=(1, 2),
        length=8,
        families=("bert-base",),
        num_samples=32,
        target_speedups=(1.05,),
        repeats=1,
        min_time=0.001,
        out=str(out),
    )
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert found["not_measured"] == []
    latency = [title for title in found["sections"] if title.startswith(("Latency", "Compiled"))]
    assert len(latency) == 3
    for title in latency:
        settings = found["sections"][title]["results"]["settings"]
        assert settings["dtype"] in title
        assert [row["batch_size"] for row in found["sections"][title]["results"]["latency"]] == [1, 2]
    assert set(compile_modes) == {"reduce-overhead"}
    assert found["sections"]["Families, bfloat16"]["results"][0]["name"] == "bert-base"
    assert found["sections"]["Pruning time"]["results"]["seconds"]["plan"] > 0
    [target] = found["sections"]["Target speedup"]["results"]
    assert target["target"] == 1.05
    assert target["speedup"] > 0
    page = out.with_suffix(".md").read_text()
    assert all(f"## {title}\n" in page for title in found["sections"])
    assert page.count("| dense") >= 7  # batches x data types, sizes, families
    assert torch.get_float32_matmul_precision() == "highest"  # as before


def test_sections_that_do_not_fit_into_the_time_are_named(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "gpu.json"
    begun: list[str] = []

    def section(name: str) -> gpu.Found:
        begun.append(name)
        return {"value": name}, [f"| {name} |"]

    found = gpu.measure({"first": lambda: section("first"), "second": lambda: section("second")}, path, {}, seconds=-1)
    assert begun == []
    assert found["not_measured"] == ["first", "second"]
    assert "first; second" in path.with_suffix(".md").read_text()
    found = gpu.measure({"first": lambda: section("first")}, path, {"gpu": "none"}, seconds=60)
    assert begun == ["first"]
    assert found["sections"]["first"]["results"] == {"value": "first"}
    page = path.with_suffix(".md").read_text()
    assert "gpu: none" in page
    assert page.endswith("## first\n\n| first |\n")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"device": "nowhere"}, "device='nowhere'"),
        ({"dtypes": ()}, r"dtypes=\[\]"),
        ({"batch_sizes": ()}, r"batch_sizes=\[\]"),
        ({"target_speedups": (0.5,)}, r"target_speedup=0\.5"),
        ({"families": ("bart",)}, "'bart'"),
    ],
)
def test_invalid_settings_raise_before_anything_is_measured(
    tmp_path: Path, settings: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        gpu.run(**{"device": "cpu", "out": str(tmp_path / "gpu.json"), **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_without_a_gpu_the_default_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device='cuda'"):
        gpu.run(out=str(tmp_path / "gpu.json"))
