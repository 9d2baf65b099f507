"""Checkpoints of models that tag tokens or give texts several labels: all exports have equal outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.command import run_export
from pgb_lightning.export.onnx import MODEL_FILE
from pgb_lightning.export.pruned_checkpoint import read_checkpoint
from pgb_lightning.modules import TextClassification, TokenClassification
from pgb_lightning.surgery.checks import is_pruned, matches

TASKS = {
    "tagger": (TokenClassification, AutoModelForTokenClassification, "token-classification"),
    "labels": (TextClassification, AutoModelForSequenceClassification, "text-classification"),
}

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 9, 7, 3], [2, 11, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Return the logits of the tokens that are no padding, or of the texts."""
    found: Tensor = model(**INPUTS).logits
    return found[INPUTS["attention_mask"] == 1] if found.dim() == 3 else found


@pytest.mark.parametrize("what", TASKS)
def test_checkpoints_are_read(what: str, pruned_checkpoint: Callable[..., Path]) -> None:
    checkpoint = read_checkpoint(pruned_checkpoint(what))
    assert isinstance(checkpoint.module, TASKS[what][0])
    assert is_pruned(find_encoder(checkpoint.model))
    assert checkpoint.tokenizer is not None
    assert checkpoint.plan is not None
    assert matches(find_encoder(checkpoint.model), checkpoint.plan)


@pytest.mark.parametrize("what", TASKS)
def test_folders_have_equal_outputs_and_name_their_pipeline(
    what: str, pruned_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = pruned_checkpoint(what)
    expected = read_checkpoint(path).model
    _, auto, task = TASKS[what]
    for format, tolerance in (("huggingface", 0.0), ("dense", 1e-5)):
        folder = tmp_path / format
        run_export(str(path), str(folder), format)  # type: ignore[arg-type]
        loaded = auto.from_pretrained(folder)
        torch.testing.assert_close(logits(loaded), logits(expected), rtol=tolerance, atol=tolerance)
        assert loaded.config.problem_type == expected.config.problem_type
        card = ModelCard.load(folder / "README.md")
        assert card.data.pipeline_tag == task
        several = ", top_k=None" if what == "labels" else ""
        assert f'pipeline("{task}", "THIS FOLDER"{several})' in card.text
        found = pipeline(task, str(folder), device="cpu", **({"top_k": None} if several else {}))("a good film")
        # In single-label classification the scores would be those of a softmax.
        scores = [each["score"] for each in (found[0] if isinstance(found[0], list) else found)]
        assert len(scores) == 3
        assert what == "tagger" or abs(sum(scores) - 1) > 1e-3


@pytest.mark.parametrize("what", TASKS)
def test_onnx_has_equal_outputs(what: str, pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = pruned_checkpoint(what)
    run_export(str(path), str(tmp_path / "out"), "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / MODEL_FILE, providers=["CPUExecutionProvider"])
    tokens = INPUTS["input_ids"]
    feed = {value.name: INPUTS.get(value.name, torch.zeros_like(tokens)).numpy() for value in session.get_inputs()}
    assert [value.name for value in session.get_outputs()] == ["logits"]
    found = torch.from_numpy(session.run(None, feed)[0])
    expected = logits(read_checkpoint(path).model)
    torch.testing.assert_close(
        found[INPUTS["attention_mask"] == 1] if found.dim() == 3 else found, expected, rtol=1e-4, atol=1e-5
    )
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == TASKS[what][2]
