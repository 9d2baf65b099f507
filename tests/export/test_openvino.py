"""OpenVINO files reproduce the model's outputs, at any batch size and length."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from helpers.plans import random_plan
from helpers.reader import pruned_reader
from helpers.tiny import batches, pruned
from torch import Tensor
from transformers import AutoConfig

from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_openvino
from pgb_lightning.export.openvino import IR_FILE
from pgb_lightning.export.sessions import openvino_run
from pgb_lightning.runtimes import requirements

needs_openvino = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openvino", "nncf", "onnxruntime", "onnxscript")),
    reason="the extra openvino is not installed",
)

SHAPES = [(1, 3), (3, 11), (2, 60)]


def build(model_type: str) -> Any:
    model = tiny_model(model_type)
    apply_plan(model, random_plan(find_encoder(model), random.Random(model_type), ("groups", "partial", "narrow")))
    return model


def inputs(size: int, length: int) -> dict[str, Tensor]:
    [batch] = tiny_batches(1, size=size, length=length)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "mpnet", "modernbert"])
def test_outputs_are_equal_at_every_shape(model_type: str, tmp_path: Path) -> None:
    model = build(model_type)
    run = openvino_run(export_openvino(model, tmp_path / "out") / IR_FILE)
    for batch in [inputs(*shape) for shape in SHAPES]:
        torch.testing.assert_close(run(batch)[0], tiny_logits(model, [batch]), rtol=0, atol=1e-4)


@needs_openvino
@pytest.mark.slow
def test_the_folder_has_single_precision_weights_the_config_and_a_card(tmp_path: Path) -> None:
    model = pruned_reader("roberta", 0.5, layers=1, preset="balanced")
    folder = export_openvino(model, tmp_path / "out")
    found = {path.name for path in folder.iterdir()}
    assert found == {"openvino_model.xml", "openvino_model.bin", "config.json", "README.md"}
    matrices = sum(p.numel() for p in find_encoder(model).model.parameters() if p.dim() > 1)
    assert (folder / "openvino_model.bin").stat().st_size > 4 * matrices
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.architectures) == ("roberta", ["RobertaForQuestionAnswering"])
    assert 'compile_model("openvino_model.xml", "CPU"' in (folder / "README.md").read_text()
    [batch] = batches(1, size=2, length=7)
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for value, name in zip(openvino_run(folder / IR_FILE)(batch), ("start_logits", "end_logits"), strict=True):
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@needs_openvino
@pytest.mark.slow
def test_int8_is_close_and_small(tmp_path: Path) -> None:
    model = pruned("bert", layers=1)
    calibration = batches(4, size=4, length=12)
    folder = export_openvino(model, tmp_path / "out", quantize="int8", calibration=calibration)
    run = openvino_run(folder / IR_FILE)
    for size in (1, 8):
        [batch] = batches(1, size=size, length=11, seed=5)
        with torch.no_grad():
            expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        [found] = run(batch)
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.3)
    matrices = sum(p.numel() for p in find_encoder(model).model.parameters() if p.dim() > 1)
    assert (folder / "openvino_model.bin").stat().st_size < 3 * matrices


@needs_openvino
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int4"}, "quantize='int4'"),
        ({"quantize": "int8"}, "quantize='int8'.*calibration=None"),
        ({"calibration": []}, "calibration.*quantize=None"),
        ({"quantize": "int8", "calibration": []}, "calibration has no batches"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_openvino(pruned("bert"), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@needs_openvino
def test_models_that_read_more_than_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bbox.*export_huggingface"):
        export_openvino(tiny_model("layoutlm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in ("openvino", "nncf") else object())
    with pytest.raises(ModuleNotFoundError, match=r"openvino, nncf.*pip install 'pgb-lightning\[openvino\]'"):
        export_openvino(pruned("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
