"""Question answering: it learns, scores each question once, prunes, and comes back from checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def data_of(model: str, folder: Path, version: str, **settings: Any) -> SQuADDataModule:
    sizes = {"max_length": 100, "stride": 16, "batch_size": 8, "eval_batch_size": 8}
    return SQuADDataModule(model, version, str(folder), **{**sizes, **settings})


@pytest.mark.parametrize("model_type", MODELS)
def test_it_learns_prunes_and_comes_back(
    model_type: str, tiny_model_folder: Folder, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_folder(tiny_model_folder, model_type)
    data = data_of(model, folders["1.1"], "1.1")
    module = QuestionAnswering(model, learning_rate=3e-3)
    fine_tuned = quiet_trainer(max_epochs=8)
    fine_tuned.fit(module, datamodule=data)
    assert float(fine_tuned.callback_metrics["val_f1"]) > 30  # a random span has a few words of a hundred
    keep, pgb = ModelCheckpoint(tmp_path, "pruned"), PGBCallback(0.3)
    quiet_trainer(callbacks=[pgb, keep], enable_checkpointing=True).fit(module, datamodule=data)
    assert is_pruned(find_encoder(module))
    loaded = QuestionAnswering.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    rows = [torch.cat(quiet_trainer().predict(one, datamodule=data)) for one in (module, loaded)]  # type: ignore[arg-type]
    assert torch.equal(rows[0], rows[1])


def test_scores_are_those_of_the_predicted_windows(tiny_model_folder: Folder, folders: dict[str, Path]) -> None:
    model = model_folder(tiny_model_folder)
    data = data_of(model, folders["2.0"], "2.0")
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
    assert tested["test_f1"] == pytest.approx(expected["best_f1"], rel=1e-5)  # now decided by the threshold found


def test_the_threshold_is_in_checkpoints_and_a_sanity_check_leaves_it(
    tiny_model_folder: Folder, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_folder(tiny_model_folder)
    data = data_of(model, folders["2.0"], "2.0")
    module = QuestionAnswering(model, "2.0")
    quiet_trainer(num_sanity_val_steps=1, limit_train_batches=0, max_epochs=1).fit(module, datamodule=data)
    assert float(module.null_threshold) == 0
    keep = ModelCheckpoint(tmp_path, "end")
    quiet_trainer(callbacks=[keep], enable_checkpointing=True, limit_train_batches=2).fit(module, datamodule=data)
    assert float(module.null_threshold) != 0
    loaded = QuestionAnswering.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert torch.equal(loaded.null_threshold, module.null_threshold)


def test_fine_tuned_weights_are_taken_over(tiny_model_folder: Folder, tmp_path: Path) -> None:
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
        ({"version": "3"}, "version='3' is no version of SQuAD"),
        ({"n_best": 0}, "n_best=0 is out of range"),
        ({"max_answer_length": 0}, "max_answer_length=0 is out of range"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 or weight_decay=0.01 is out of range"),
        ({"fine_tuned_ckpt": "none.ckpt"}, r"fine_tuned_ckpt='none.ckpt' is not a file"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        QuestionAnswering("no/such/model", **settings)


def test_scores_are_logged_from_where_the_module_is(tiny_model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL adds up what lies on a GPU, and the scores are worked out on the CPU."""
    module = QuestionAnswering(model_folder(tiny_model_folder))
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(QuestionAnswering, "device", torch.device("meta"))
    monkeypatch.setattr(module, "log_dict", lambda scores, **_: logged.update(scores))
    module._metric = SquadMetric({"context": ["a red sea"], "answers": [{"text": ["red sea"]}]})
    module._metric.update(torch.tensor([[0, 0, 5.0, 1.0, 2, 9]]))
    module.on_test_epoch_end()
    assert logged.keys() == {"test_exact_match", "test_f1"}
    assert {value.device.type for value in logged.values()} == {"meta"}


def test_data_of_another_version_or_without_texts_are_refused(
    tiny_model_folder: Folder, folders: dict[str, Path]
) -> None:
    model = model_folder(tiny_model_folder)
    data = data_of(model, folders["2.0"], "2.0")
    with pytest.raises(MisconfigurationException, match=r"data are of SQuAD version='2.0', the model is for '1.1'"):
        quiet_trainer().fit(QuestionAnswering(model), datamodule=data)
    data.setup("validate")
    loader = data.val_dataloader()
    assert isinstance(loader, DataLoader)
    with pytest.raises(MisconfigurationException, match="needs a data module with a method examples"):
        quiet_trainer().validate(QuestionAnswering(model, "2.0"), loader)


def test_an_encoder_that_classified_into_three_gets_a_head_for_spans(tiny_model_folder: Folder) -> None:
    model = str(tiny_model_folder("bert", max_position_embeddings=130, num_labels=3))
    assert QuestionAnswering(model).model.qa_outputs.out_features == 2
