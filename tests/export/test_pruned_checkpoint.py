"""Reading checkpoints to export, and which ones are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.pruned_checkpoint import read_checkpoint
from pgb_lightning.modules import QuestionAnswering, TextClassification
from pgb_lightning.surgery.checks import is_pruned, matches


def test_a_classifier_checkpoint(pruned_checkpoint: Callable[..., Path]) -> None:
    path = pruned_checkpoint("classifier")
    checkpoint = read_checkpoint(path)
    assert isinstance(checkpoint.module, TextClassification)
    assert not checkpoint.model.training
    assert is_pruned(find_encoder(checkpoint.model))
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in checkpoint.model.state_dict().items())
    assert checkpoint.tokenizer is not None
    assert checkpoint.plan is not None
    assert matches(find_encoder(checkpoint.model), checkpoint.plan)
    assert (checkpoint.card.task, checkpoint.card.scores) == ("sst2", {"val_accuracy": 0.875})


def test_the_last_checkpoint_does_not_report_the_best_score(pruned_checkpoint: Callable[..., Path]) -> None:
    path = pruned_checkpoint("classifier")
    last = shutil.copy(path, path.with_name("last.ckpt"))  # its callback state also holds the best score
    assert read_checkpoint(last).card.scores == {}


def test_a_question_answering_checkpoint(pruned_checkpoint: Callable[..., Path]) -> None:
    checkpoint = read_checkpoint(pruned_checkpoint("reader"))
    assert isinstance(checkpoint.module, QuestionAnswering)
    assert checkpoint.card.task == "SQuAD 1.1"


def test_a_plan_that_does_not_match_is_left_out(pruned_checkpoint: Callable[..., Path]) -> None:
    path = pruned_checkpoint("classifier")
    checkpoint = torch.load(path, weights_only=True)
    for entry in checkpoint["callbacks"]["PGBCallback"]["plan"]["matrices"]:
        entry.update(input_index=None, output_index=None, num_groups=1)
    torch.save(checkpoint, path)
    assert read_checkpoint(path).plan is None


def test_the_alias_is_resolved_to_the_hub_name(pruned_checkpoint: Callable[..., Path]) -> None:
    checkpoint = read_checkpoint(pruned_checkpoint("classifier", name="minilm-l6"))
    assert checkpoint.card.base_model == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_missing_tokenizer_raises_a_warning(pruned_checkpoint: Callable[..., Path]) -> None:
    path = pruned_checkpoint("classifier", name="no/such/model")
    with pytest.warns(UserWarning, match=r"model_name_or_path='no/such/model'"):
        assert read_checkpoint(path).tokenizer is None


def test_a_damaged_tokenizer_raises_a_warning(
    pruned_checkpoint: Callable[..., Path], tmp_path: Path, tiny_model_folder: Callable[..., Path]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model_folder("bert"), folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    path = pruned_checkpoint("classifier", name=str(folder))
    with pytest.warns(UserWarning, match=r"model_name_or_path='.*damaged' \(KeyError: .+\)"):
        assert read_checkpoint(path).tokenizer is None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.warns(UserWarning, match=r"model_name_or_path='.*damaged' \(.+\)"):
        assert read_checkpoint(path).tokenizer is None


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"ckpt_path='no\.ckpt'"):
        read_checkpoint("no.ckpt")


def test_a_dense_checkpoint_is_refused(pruned_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(MisconfigurationException, match=r"ckpt_path=.* dense model"):
        read_checkpoint(pruned_checkpoint("dense"))


def test_a_truncated_checkpoint_is_refused(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "cut.ckpt").write_bytes(pruned_checkpoint().read_bytes()[:-5000])
    with pytest.raises(MisconfigurationException, match=r"ckpt_path=.*cut\.ckpt"):
        read_checkpoint(tmp_path / "cut.ckpt")


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer()
    trainer.strategy.connect(L.LightningModule())
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(MisconfigurationException, match=r"ckpt_path=.*TextClassification.*export_huggingface"):
        read_checkpoint(tmp_path / "own.ckpt")


@pytest.mark.parametrize("path", ["no_such_package.MyModule", "pgb_lightning.no_such_module.MyModule", "os.MyModule"])
def test_a_checkpoint_of_a_module_that_is_not_installed_is_refused(path: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"_class_path": path}}, tmp_path / "own.ckpt")
    with pytest.raises(MisconfigurationException, match=rf"ckpt_path=.*was written by {path}, .*export_huggingface"):
        read_checkpoint(tmp_path / "own.ckpt")
