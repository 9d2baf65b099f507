"""Export round trips: every format gives the outputs of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import MODEL_TYPES, classifier
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.export_roundtrip import differences, random_batch, run, torch_run


@pytest.mark.slow
def test_every_format_gives_the_outputs_of_the_checkpoint(
    pruned_checkpoint: Callable[..., Path], glue_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    found = run(
        str(pruned_checkpoint(num_hidden_layers=1)),
        report=str(tmp_path / "report.json"),
        data_dir=str(glue_folder("sst2")),
        batch_sizes=[2],
        length=8,
        repeats=1,
    )
    assert json.loads((tmp_path / "report.json").read_text()) == found
    for name in ("PyTorch, pruned", "Hugging Face folder", "the same, saved again", "back in a LightningModule"):
        assert found[name]["largest difference"] == 0
    for name in ("PyTorch, dense twin", "ONNX, pruned", "ONNX, dense twin"):
        assert found[name]["largest difference"] < 1e-4
        assert found[name]["accuracy"] == found["PyTorch, pruned"]["accuracy"]
    assert 1e-4 < found["ONNX int8, pruned"]["largest difference"] < 1
    for kind in ("PyTorch", "ONNX", "ONNX int8"):
        pruned, dense = found[f"{kind}, pruned"], found[f"{kind}, dense twin"]
        assert pruned["ms, batch 2"] > 0
        assert dense["ms, batch 2"] > 0
    assert found["ONNX int8, dense twin"]["megabytes"] < found["ONNX, dense twin"]["megabytes"]


def test_compiled_models_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = classifier().eval(), []

    def compile_eagerly(model: torch.nn.Module, dynamic: bool) -> torch.nn.Module:
        compiled.append(model)
        return plain(model, dynamic=dynamic, backend="eager")

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    runs = {"plain": torch_run(model), "compiled": torch_run(model, compiled=True)}
    assert differences(runs, [random_batch(model, 2, 7)])["compiled"] == 0
    assert compiled == [model]
    torch._dynamo.reset()


def test_invalid_settings_raise(pruned_checkpoint: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(MisconfigurationException, match=r"length=65 .* 64"):
        run(str(pruned_checkpoint()), length=65)
    with pytest.raises(MisconfigurationException, match="data_dir='here'"):
        run(str(pruned_checkpoint("reader")), data_dir="here", length=8)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_max_length_is_the_limit_of_the_model(model_type: str) -> None:
    model = classifier(model_type)
    longest = find_encoder(model).max_length
    with torch.no_grad():
        model(**random_batch(model, 2, longest))
        with pytest.raises((IndexError, RuntimeError)):
            model(**random_batch(model, 2, longest + 1))


def test_differences_at_padding_are_ignored() -> None:
    batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    runs = {
        "first": lambda batch: [torch.zeros(1, 3), torch.zeros(1, 2)],
        "padding": lambda batch: [torch.tensor([[0.0, 0.0, 9.0]]), torch.zeros(1, 2)],
        "second": lambda batch: [torch.zeros(1, 3), torch.tensor([[0.0, 0.5]])],
    }
    assert differences(runs, [batch]) == {"first": 0.0, "padding": 0.0, "second": 0.5}
