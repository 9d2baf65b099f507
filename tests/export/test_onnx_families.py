"""ONNX files of families that differ from BERT reproduce the model's outputs, at any batch size and length."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import REPRESENTATIVES, tiny_batches, tiny_logits, tiny_model
from helpers.plans import random_plan
from torch import Tensor

from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_onnx
from pgb_lightning.export.onnx import MODEL_FILE, QUANTIZED_FILE

pytest.importorskip("onnxruntime")

#: Those that :mod:`test_onnx` exports.
BERT_LIKE = ("bert", "distilbert", "mpnet")

#: More positions than a window of local attention has, and than there are buckets of relative positions.
SHAPES = [(1, 3), (3, 11), (2, 60)]


def build(model_type: str, forms: tuple[str, ...] = ("groups", "partial", "narrow", "narrow groups")) -> Any:
    model = tiny_model(model_type)
    apply_plan(model, random_plan(find_encoder(model), random.Random(model_type), forms))
    return model


def run(path: Path, batch: dict[str, Tensor]) -> Tensor:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = batch["input_ids"]
    feed = {value.name: batch.get(value.name, torch.zeros_like(tokens)).numpy() for value in session.get_inputs()}
    return torch.from_numpy(session.run(["logits"], feed)[0])


def batches() -> list[dict[str, Tensor]]:
    made = [tiny_batches(1, size=size, length=length)[0] for size, length in SHAPES]
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in made]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in REPRESENTATIVES if name not in BERT_LIKE])
def test_outputs_are_equal_at_every_shape(model_type: str, tmp_path: Path) -> None:
    model = build(model_type)
    folder = export_onnx(model, tmp_path / "out")
    for batch in batches():
        torch.testing.assert_close(run(folder / MODEL_FILE, batch), tiny_logits(model, [batch]), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["modernbert", "nomic_bert"])
def test_int8_of_gated_networks_is_close(model_type: str, tmp_path: Path) -> None:
    model = build(model_type)
    folder = export_onnx(model, tmp_path / "out", quantize="int8-dynamic")
    for batch in batches():
        expected = tiny_logits(model, [batch])
        found = run(folder / QUANTIZED_FILE, batch)
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("layoutlm", "bbox"),
        ("markuplm", "xpath_tags_seq"),
        ("tapas", "token_type_ids"),
        ("roc_bert", "input_shape_ids"),
    ],
)
def test_models_that_read_more_than_text_are_refused(model_type: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{what}.*export_huggingface"):
        export_onnx(tiny_model(model_type), tmp_path / "out")
    assert not (tmp_path / "out").exists()
