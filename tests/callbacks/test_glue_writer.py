from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fakes import glue_rows, quiet_trainer
from helpers.own import OwnModule, make_loader
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks import PredictionWriter
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.glue_tasks import TASKS, get_task
from pgb_lightning.modules import TextClassification

NAMES = ["CoLA", "SST-2", "MRPC", "QQP", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI"]
Folder = Callable[..., Path]


class LengthPredictor(TextClassification):
    """Predict a function of the row's length, so that the expected file is known."""

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        lengths = batch["attention_mask"].sum(1)
        return {
            "predictions": lengths / 4 - 2 if self.num_labels == 1 else (lengths + dataloader_idx) % self.num_labels
        }


@pytest.fixture
def make(tiny_model_folder: Folder, tmp_path: Path) -> Callable[..., GLUEDataModule]:
    """Make a task's data module, with 37 rows per split, and with or without test splits."""

    def build(name: str, tested: bool = True) -> GLUEDataModule:
        task = get_task(name)
        folder = tmp_path / name
        folder.mkdir()
        for number, split in enumerate((*task.validation_splits, *(task.test_splits if tested else ()))):
            rows = glue_rows(task, 37, seed=number)
            if split in task.test_splits:
                rows = rows.remove_columns("label").add_column("label", [-1] * 37)
            rows.to_parquet(folder / f"{split}.parquet")
        return GLUEDataModule(name, str(tiny_model_folder("bert")), str(folder), max_length=64, eval_batch_size=8)

    return build


def predict(data: GLUEDataModule, folder: Path, overwrite: bool = False, **settings: Any) -> dict[str, list[list[str]]]:
    """Predict and return the written files: each file's lines, split into columns."""
    module = LengthPredictor(data.model_name_or_path, task=data.task.name)
    quiet_trainer(callbacks=[PredictionWriter(str(folder), overwrite)], **settings).predict(module, datamodule=data)
    return read(folder)


def read(folder: Path) -> dict[str, list[list[str]]]:
    return {path.name: [line.split("\t") for line in path.read_text().splitlines()] for path in folder.glob("*.tsv")}


def lengths(data: GLUEDataModule, split: str) -> list[int]:
    return [len(ids) for ids in data.split(split)["input_ids"]]


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_is_written_in_the_leaderboards_format(
    name: str, make: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    data = make(name)
    files = predict(data, tmp_path / "out" / "deep")
    assert set(files) == {f"{file}.tsv" for file in data.task.leaderboard}
    classes = {
        "mnli": ["entailment", "neutral", "contradiction"],
        "qnli": ["entailment", "not_entailment"],
        "rte": ["entailment", "not_entailment"],
    }.get(name, ["0", "1"])
    for loader, (file, split) in enumerate(zip(data.task.leaderboard, data.task.test_splits, strict=True)):
        header, *rows = files[f"{file}.tsv"]
        assert header == ["index", "prediction"]
        assert [index for index, _ in rows] == [str(number) for number in range(37)]
        counts = lengths(data, split)
        if name == "stsb":
            assert [word for _, word in rows] == [f"{min(max(count / 4 - 2, 0), 5):.3f}" for count in counts]
            assert {"5.000"} < {word for _, word in rows}
        else:
            assert [word for _, word in rows] == [classes[(count + loader) % len(classes)] for count in counts]


def test_labels_follow_the_models_id2label(make: Callable[..., GLUEDataModule], tmp_path: Path) -> None:
    data = make("rte")
    module = LengthPredictor(data.model_name_or_path, task="rte")
    module.model.config.id2label = {0: "NOT-ENTAILMENT", 1: "Entailment"}  # in another order than the Hub's
    quiet_trainer(callbacks=[PredictionWriter(str(tmp_path / "out"))]).predict(module, datamodule=data)
    [(_, *rows)] = read(tmp_path / "out").values()
    labels = ("not_entailment", "entailment")
    assert [word for _, word in rows] == [labels[count % 2] for count in lengths(data, "test")]


def test_the_files_have_the_leaderboards_names() -> None:
    assert sorted(name for task in TASKS.values() for name in task.leaderboard) == sorted(NAMES)
    assert all(len(task.leaderboard) == len(task.test_splits) for task in TASKS.values())


def test_validation_rows_are_written_under_another_name_if_there_is_no_test_split(
    make: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"mnli.*validation_matched, validation_mismatched"):
        files = predict(make("mnli", tested=False), tmp_path / "out")
    assert set(files) == {"MNLI-m-validation.tsv", "MNLI-mm-validation.tsv"}
    assert all(len(lines) == 38 for lines in files.values())


def test_files_are_replaced_only_with_overwrite(make: Callable[..., GLUEDataModule], tmp_path: Path) -> None:
    data, out = make("sst2"), tmp_path / "out"
    out.mkdir()
    (out / "SST-2.tsv").write_text("mine")
    with pytest.raises(MisconfigurationException, match=r"SST-2\.tsv.*overwrite"):
        predict(data, out)
    assert (out / "SST-2.tsv").read_text() == "mine"
    assert len(predict(data, out, overwrite=True)["SST-2.tsv"]) == 38


def test_incomplete_predictions_are_not_written(make: Callable[..., GLUEDataModule], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"SST-2\.tsv.*\b16\b.*\b37\b"):
        assert predict(make("sst2"), tmp_path / "out", limit_predict_batches=2) == {}


@pytest.mark.parametrize("task", ["stsb", "sst2"])
@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_diverged_model_is_refused(
    task: str, value: str, make: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    """The class with the highest score is a class also if all scores are NaN."""
    data = make(task)
    module = TextClassification(data.model_name_or_path, task=task)
    module.model.classifier.bias.data.fill_(float(value))
    with pytest.raises(MisconfigurationException, match=r"row 0 of test"):
        quiet_trainer(callbacks=[PredictionWriter(str(tmp_path / "out"))]).predict(module, datamodule=data)
    assert not (tmp_path / "out").exists()


def test_other_data_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[PredictionWriter(str(tmp_path))])
    with pytest.raises(MisconfigurationException, match=r"GLUEDataModule.*NoneType"):
        trainer.predict(OwnModule(), make_loader(8))


def test_a_fit_writes_nothing(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[PredictionWriter(str(tmp_path))])
    trainer.fit(OwnModule(), make_loader(8), make_loader(8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions", "repeated"])
def test_two_processes_write_the_file_of_one(
    name: str, two_processes: Path, squad_model: str, glue_folder: Folder
) -> None:
    data = GLUEDataModule("stsb", squad_model, str(glue_folder("stsb")), max_length=64)
    _, *rows = read(two_processes / name)["STS-B-validation.tsv"]
    expected = [[str(row), f"{min(count / 10, 5):.3f}"] for row, count in enumerate(lengths(data, "validation"))]
    assert rows == expected
    assert len({score for _, score in rows}) > 5
