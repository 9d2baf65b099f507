"""What is stored of a pruned model and loaded again computes the same, in every family and every format."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.families import TINY, accepted, tiny_batches, tiny_logits, tiny_model
from helpers.pruned_models import Situation
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from pgb_lightning import follow_state_dict
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface
from pgb_lightning.surgery.checks import is_pruned, matches
from pgb_lightning.surgery.from_state_dict import StructureError


class Classifier(L.LightningModule):
    """A module that follows state dicts."""

    def __init__(self, model_type: str, seed: int = 9) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = tiny_model(model_type, seed=seed)
        follow_state_dict(self)


def assert_equal(model: nn.Module, case: Situation, expected: Tensor) -> None:
    """Require the outputs, the plan and the names of a pruned model."""
    torch.testing.assert_close(tiny_logits(model), expected, rtol=0, atol=0)
    assert matches(find_encoder(model), case.plan)
    assert model.state_dict().keys() == case.pruned.state_dict().keys()


@pytest.mark.parametrize("model_type", TINY)
def test_every_format_loads(model_type: str, tmp_path: Path) -> None:
    case = Situation(model_type, seed=1)
    expected = tiny_logits(case.pruned)
    frozen = find_encoder(case.original).layers[0]

    # A state dict in a file, into dense models of which a part is frozen.
    torch.save(case.state(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    follower = case.fresh()
    find_encoder(follower).layers[0].requires_grad_(False)
    for _ in range(2):  # dense, then pruned
        follower.load_state_dict(state)
        assert_equal(follower, case, expected)
    assert not any(p.requires_grad for p in find_encoder(follower).layers[0].parameters())
    assert all(p.requires_grad for p in frozen.parameters())

    # A dense model does not take it silently.
    if is_pruned(find_encoder(case.pruned)):
        plain = tiny_model(model_type, seed=9)
        with pytest.raises(RuntimeError, match=r"size mismatch|Unexpected key|Missing key"):
            plain.load_state_dict(state)

    # A checkpoint of Lightning.
    module = Classifier(model_type, seed=1)
    module.model = case.pruned
    trainer = quiet_trainer(default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "module.ckpt", map_location="cpu", weights_only=True)
    assert_equal(loaded.model, case, expected)

    # Folders of transformers, written by its own method and by the export; saved again after loading.
    case.pruned.save_pretrained(tmp_path / "saved")
    export_huggingface(case.pruned, tmp_path / "exported", plan=case.plan)
    for name in ("saved", "exported"):
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert_equal(again, case, expected)
    again.save_pretrained(tmp_path / "again")
    assert_equal(AutoModelForSequenceClassification.from_pretrained(tmp_path / "again"), case, expected)
    tiny_model(model_type).save_pretrained(tmp_path / "dense")
    dense, half = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name, dtype=torch.bfloat16)
        for name in ("dense", "exported")
    )
    assert {value.dtype for value in half.parameters() if value.dim() > 1} == {torch.bfloat16}
    with accepted(dense) as is_accepted:
        found = tiny_logits(half)
    if is_accepted:
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("model_type", TINY)
def test_an_encoder_without_a_head_is_exported(model_type: str, tmp_path: Path) -> None:
    encoder = find_encoder(Situation(model_type, seed=2).pruned)
    export_huggingface(encoder.model, tmp_path / "out")
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    [batch] = tiny_batches(1)
    del batch["labels"]
    with torch.no_grad():
        found, expected = (model.eval()(**batch).last_hidden_state for model in (loaded, encoder.model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", TINY)
def test_another_structure_is_loaded_over_a_pruned_one(model_type: str) -> None:
    first, second = Situation(model_type, seed=1), Situation(model_type, seed=3)
    model, held = copy.deepcopy(first.pruned), first
    follow_state_dict(model)
    for case in (second, first):
        try:
            model.load_state_dict(case.state())
        except StructureError as error:  # nothing is changed
            assert "newly built" in str(error)  # noqa: PT017
        else:
            held = case
        assert_equal(model, held, tiny_logits(held.pruned))
