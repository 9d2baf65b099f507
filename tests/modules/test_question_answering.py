"""Question answering: training, scores, pruning and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer, squad_folder
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.datamodules import SQuADDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules import QuestionAnswering
from pgb_lightning.modules.squad_metrics import SquadMetric, best_answers, squad_scores
from pgb_lightning.surgery.checks import is_pruned

Folder = Callable[..., Path]
MODELS = ("bert", "roberta", "distilbert", "mpnet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("squad")
    return {version: squad_folder(root / version, version, train=240) for version in ("1.1", "2.0")}


def model_folder(tiny_model_folder: Folder, model_type: str = "bert") -> str:
    return str(tiny_model_folder(model_type, max_position_embeddings=130))


def make_data(model: str, folder: Path, version: str, **settings: Any) -> SQuADDataModule:
    sizes = {"max_length": 100, "stride": 16, "batch_size": 8, "eval_batch_size": 8}
    return SQuADDataModule(model, version, str(folder), **{**sizes, **settings})


@pytest.mark.slow
def test_it_learns(tiny_model_folder: Folder, folders: dict[str, Path]) -> None:
    L.seed_everything(0)
    model = model_folder(tiny_model_folder)
    trainer = quiet_trainer(max_epochs=8, num_sanity_val_steps=0, check_val_every_n_epoch=8)
    module = QuestionAnswering(model, learning_rate=3e-3)
    trainer.fit(module, datamodule=make_data(model, folders["1.1"], "1.1"))
    assert float(trainer.callback_metrics["val_f1"]) > 30  # a random span has a few of a hundred words


@pytest.mark.parametrize("model_type", MODELS)
def test_a_pruned_model_is_restored_from_its_checkpoint(
    model_type: str, tiny_model_folder: Folder, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_folder(tiny_model_folder, model_type)
    data = make_data(model, folders["1.1"], "1.1", calibration_size=40)
    module = QuestionAnswering(model)
    checkpoint, pgb = ModelCheckpoint(tmp_path, "pruned"), PGBCallback(0.3)
    trainer = quiet_trainer(callbacks=[pgb, checkpoint], enable_checkpointing=True, limit_train_batches=3)
    trainer.fit(module, datamodule=data)
    assert is_pruned(find_encoder(module))
    loaded = QuestionAnswering.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    rows = [torch.cat(quiet_trainer().predict(one, datamodule=data)) for one in (module, loaded)]  # type: ignore[arg-type]
    assert torch.equal(rows[0], rows[1])


def test_scores_match_the_predicted_windows(tiny_model_folder: Folder, folders: dict[str, Path]) -> None:
    model = model_folder(tiny_model_folder)
    data = make_data(model, folders["2.0"], "2.0")
    module = QuestionAnswering(model, "2.0", max_answer_length=4)
    [logged] = quiet_trainer().validate(module, datamodule=data, verbose=False)
    windows = torch.cat(quiet_trainer().predict(module, datamodule=data)).double().numpy()  # type: ignore[arg-type]
    examples = data.examples("validation")
    expected = squad_scores(
        best_answers(windows, list(examples["context"])), [row["text"] for row in examples["answers"]], 0.0
    )
    assert {f"val_{name}": pytest.approx(value, rel=1e-5) for name, value in expected.items()} == logged
    assert {"val_exact_match", "val_f1", "val_HasAns_f1", "val_NoAns_f1", "val_best_f1_thresh"} <= logged.keys()
    assert float(module.null_threshold) == pytest.approx(expected["best_f1_thresh"], rel=1e-5)
    [tested] = quiet_trainer().test(module, datamodule=data, verbose=False)
    assert tested["test_f1"] == pytest.approx(expected["best_f1"], rel=1e-5)  # now with the stored threshold


def test_the_threshold_is_stored_in_checkpoints_but_not_after_sanity_checks(
    tiny_model_folder: Folder, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_folder(tiny_model_folder)
    data = make_data(model, folders["2.0"], "2.0")
    module = QuestionAnswering(model, "2.0")
    quiet_trainer(num_sanity_val_steps=1, limit_train_batches=0, max_epochs=1).fit(module, datamodule=data)
    assert float(module.null_threshold) == 0
    checkpoint = ModelCheckpoint(tmp_path, "end")
    quiet_trainer(callbacks=[checkpoint], enable_checkpointing=True, limit_train_batches=2).fit(module, datamodule=data)
    assert float(module.null_threshold) != 0
    loaded = QuestionAnswering.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert torch.equal(loaded.null_threshold, module.null_threshold)


def test_fine_tuned_weights_are_loaded(tiny_model_folder: Folder, tmp_path: Path) -> None:
    model = model_folder(tiny_model_folder)
    first = QuestionAnswering(model)
    trainer = quiet_trainer()
    trainer.strategy.connect(first)
    trainer.save_checkpoint(tmp_path / "first.ckpt", weights_only=True)
    second = QuestionAnswering(model, fine_tuned_ckpt=str(tmp_path / "first.ckpt"))
    assert all(torch.equal(second.state_dict()[name], value) for name, value in first.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "3"}, "version='3'"),
        ({"n_best": 0}, "n_best=0"),
        ({"max_answer_length": 0}, "max_answer_length=0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"fine_tuned_ckpt": "none.ckpt"}, r"fine_tuned_ckpt='none\.ckpt'"),
    ],
)
def test_the_error_for_an_invalid_setting_names_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        QuestionAnswering("no/such/model", **settings)


def test_scores_are_logged_on_the_device_of_the_module(
    tiny_model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are computed on the CPU, but NCCL sums tensors on GPUs only."""
    module = QuestionAnswering(model_folder(tiny_model_folder))
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(QuestionAnswering, "device", torch.device("meta"))
    monkeypatch.setattr(module, "log_dict", lambda scores, **_: logged.update(scores))
    module._metric = SquadMetric({"context": ["a red sea"], "answers": [{"text": ["red sea"]}]})
    module._metric.update(torch.tensor([[0, 0, 5.0, 1.0, 2, 9]]))
    module.on_test_epoch_end()
    assert logged.keys() == {"test_exact_match", "test_f1"}
    assert {value.device.type for value in logged.values()} == {"meta"}


def test_data_of_another_version_or_without_texts_are_rejected(
    tiny_model_folder: Folder, folders: dict[str, Path]
) -> None:
    model = model_folder(tiny_model_folder)
    data = make_data(model, folders["2.0"], "2.0")
    with pytest.raises(MisconfigurationException, match=r"version='2\.0'.* '1\.1'"):
        quiet_trainer().fit(QuestionAnswering(model), datamodule=data)
    data.setup("validate")
    loader = data.val_dataloader()
    assert isinstance(loader, DataLoader)
    with pytest.raises(MisconfigurationException, match="data module"):
        quiet_trainer().validate(QuestionAnswering(model, "2.0"), loader)


def test_an_encoder_with_three_labels_gets_a_span_head(tiny_model_folder: Folder) -> None:
    model = str(tiny_model_folder("bert", max_position_embeddings=130, num_labels=3))
    assert QuestionAnswering(model).model.qa_outputs.out_features == 2
