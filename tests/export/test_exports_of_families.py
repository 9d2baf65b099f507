"""Folders of every family, with several heads: all weights are loaded, and nothing else is accepted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import REPRESENTATIVES, tiny_batches, tiny_model
from helpers.plans import random_plan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_dense, export_huggingface
from pgb_lightning.export.registered_models import auto_class
from pgb_lightning.surgery.from_state_dict import StructureError

HEADS = {"": AutoModel, "MaskedLM": AutoModelForMaskedLM, "TokenClassification": AutoModelForTokenClassification}


def build(model_type: str, head: str, seed: int = 1) -> Any:
    """Build a pruned model whose sublayers have different forms."""
    model = tiny_model(model_type, head)
    apply_plan(model, random_plan(find_encoder(model), random.Random(f"{model_type} {seed}")))
    return model


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    [batch] = tiny_batches(1)
    return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_a_folder_holds_the_model(model_type: str, head: str, tmp_path: Path) -> None:
    model = build(model_type, head)
    assert auto_class(model) is HEADS[head]
    model.save_pretrained(tmp_path / "saved")
    export_huggingface(model, tmp_path / "exported")
    for name in ("saved", "exported"):
        loaded, info = HEADS[head].from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        own, theirs = model.state_dict(), loaded.state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(theirs[key], value) for key, value in own.items())
        torch.testing.assert_close(outputs(loaded), outputs(model))
    export_dense(loaded, tmp_path / "dense")
    dense = HEADS[head].from_pretrained(tmp_path / "dense")
    assert type(dense) is type(model)
    torch.testing.assert_close(outputs(dense), outputs(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_a_new_head_takes_the_encoder_as_it_is(model_type: str, tmp_path: Path) -> None:
    model = build(model_type, "")
    model.save_pretrained(tmp_path)
    tagger = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    encoder = find_encoder(tagger)
    stored = find_encoder(model).model.state_dict()
    own = encoder.model.state_dict()
    for name in own.keys() & stored.keys():
        assert torch.equal(own[name], stored[name]), name
    missing = own.keys() ^ stored.keys()
    assert all(name.startswith("pooler.") for name in missing)


@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_the_encoder_of_a_head_keeps_its_pooler(model_type: str, tmp_path: Path) -> None:
    model = build(model_type, "SequenceClassification")
    encoder = find_encoder(model)
    export_huggingface(encoder.model, tmp_path / "out")
    assert type(AutoModel.from_pretrained(tmp_path / "out")).dense_class is type(encoder.model)
    own = find_encoder(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")).model.state_dict()
    assert own.keys() == encoder.model.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in encoder.model.state_dict().items())


@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_every_tensor_of_the_encoder_must_be_there(model_type: str, tmp_path: Path) -> None:
    model = build(model_type, "MaskedLM")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    inside = f"{find_encoder(model).name}."
    first = {name.removeprefix(inside).partition(".")[0]: name for name in stored if name.startswith(inside)}
    assert len(first) > 1
    for name in first.values():  # one of the embeddings, one of the layers, one of what comes after them
        save_file({key: value for key, value in stored.items() if key != name}, path, metadata={"format": "pt"})
        with pytest.raises(StructureError, match=rf"{name} is missing"):
            auto_class(model).from_pretrained(tmp_path)
    name = f"{inside}{find_encoder(model).family.layers}.0.other.weight"
    save_file({**stored, name: torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(StructureError, match=rf"{name} is not in config\.json"):
        auto_class(model).from_pretrained(tmp_path)
