"""GLUE: splits, labels and class names from the Hub and from folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from helpers.fakes import glue_rows
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules import GLUEDataModule, files
from pgb_lightning.glue_tasks import TASKS, get_task

REAL = Path(os.environ.get("PGB_DATA_DIR", "no such folder")) / "glue"


@pytest.fixture
def model(tiny_model_folder: Callable[..., Path]) -> str:
    return str(tiny_model_folder("bert"))


def as_list(loaders: object) -> list[torch.utils.data.DataLoader]:
    return loaders if isinstance(loaders, list) else [loaders]


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_is_read_from_a_folder(name: str, model: str, glue_folder: Callable[..., Path]) -> None:
    task = get_task(name)
    module = GLUEDataModule(name, model, str(glue_folder(name)), max_length=32)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["labels"].dtype == (torch.float32 if task.is_regression else torch.int64)
    assert len(as_list(module.val_dataloader())) == len(task.validation_splits)
    assert module.num_labels == task.num_labels


def test_pairs_are_encoded_as_pairs(model: str, glue_folder: Callable[..., Path]) -> None:
    folder = glue_folder("qnli")
    module = GLUEDataModule("qnli", model, str(folder), max_length=64)
    row = datasets.Dataset.from_parquet(str(folder / "validation.parquet"))[0]
    encoded = module.split("validation")[0]
    assert module.tokenizer.decode(encoded["input_ids"]) == (f"[CLS] {row['question']} [SEP] {row['sentence']} [SEP]")
    assert encoded["token_type_ids"].count(1) == len(row["sentence"].split()) + 1


def test_mnli_has_a_loader_for_each_validation_set(model: str, glue_folder: Callable[..., Path]) -> None:
    folder = glue_folder("mnli")
    matched, mismatched = GLUEDataModule("mnli", model, str(folder), max_length=64).val_dataloader()
    for loader, name in ((matched, "validation_matched"), (mismatched, "validation_mismatched")):
        rows = datasets.Dataset.from_parquet(str(folder / f"{name}.parquet"))
        assert [int(label) for batch in loader for label in batch["labels"]] == rows["label"][:]
    assert next(iter(matched))["input_ids"].tolist() != next(iter(mismatched))["input_ids"].tolist()


def test_without_a_folder_rows_are_loaded_from_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def fake(*args: str, split: str) -> datasets.Dataset:
        requested.append((*args, split))
        return glue_rows(get_task("mrpc"), 20)

    monkeypatch.setattr(files, "load_dataset", fake)
    GLUEDataModule("mrpc", model, max_length=32).setup("fit")
    assert requested == [("nyu-mll/glue", "mrpc", "train"), ("nyu-mll/glue", "mrpc", "validation")]


def test_files_with_the_names_of_the_hub_are_concatenated(model: str, tmp_path: Path) -> None:
    task = get_task("sst2")
    glue_rows(task, 7, seed=1).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    glue_rows(task, 5, seed=2).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    glue_rows(task, 4, seed=3).to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    module = GLUEDataModule("sst2", model, str(tmp_path), max_length=32)
    assert (len(module.split("train")), len(module.split("validation"))) == (12, 4)


@pytest.fixture
def folder_with_test(tmp_path: Path) -> Callable[[list[int] | None], Path]:
    """Create a folder whose three test rows have the given labels, or no label column."""

    def make(labels: list[int] | None) -> Path:
        task = get_task("sst2")
        for split in ("train", "validation"):
            glue_rows(task, 20).to_parquet(tmp_path / f"{split}.parquet")
        columns = {"sentence": ["good film", "bad film", "the plot"], "label": labels}
        if labels is None:
            del columns["label"]
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "test.parquet")
        return tmp_path

    return make


@pytest.mark.parametrize("labels", [[-1, -1, -1], None])
def test_test_rows_without_public_labels_are_for_prediction_only(
    labels: list[int] | None, model: str, folder_with_test: Callable[..., Path]
) -> None:
    module = GLUEDataModule("sst2", model, str(folder_with_test(labels)), max_length=32)
    assert len(module.test_dataloader().dataset) == 20
    (batch,) = module.predict_dataloader()
    assert len(batch["input_ids"]) == 3
    assert "labels" not in batch


def test_labeled_test_rows_are_used_for_testing(model: str, folder_with_test: Callable[..., Path]) -> None:
    module = GLUEDataModule("sst2", model, str(folder_with_test([1, 0, 1])), max_length=32)
    (batch,) = module.test_dataloader()
    assert batch["labels"].tolist() == [1, 0, 1]


def test_without_a_test_split_prediction_uses_validation(model: str, glue_folder: Callable[..., Path]) -> None:
    module = GLUEDataModule("sst2", model, str(glue_folder("sst2")), max_length=32)
    assert len(module.predict_dataloader().dataset) == 40
    assert len(module.test_dataloader().dataset) == 40


def test_integers_are_scores_in_regression(model: str, tmp_path: Path) -> None:
    rows = {"sentence1": ["good"] * 3, "sentence2": ["bad"] * 3, "label": [0, 3, 5]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "validation.parquet")
    (batch,) = GLUEDataModule("stsb", model, str(tmp_path), max_length=32).val_dataloader()
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [0.0, 3.0, 5.0]


def test_classes_stored_as_floats_are_classes(model: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"sentence": ["good"] * 2, "label": [0.0, 1.0]}).to_parquet(
        tmp_path / "validation.parquet"
    )
    (batch,) = GLUEDataModule("sst2", model, str(tmp_path), max_length=32).val_dataloader()
    assert (batch["labels"].dtype, batch["labels"].tolist()) == (torch.int64, [0, 1])


@pytest.mark.parametrize(
    ("task", "stored", "expected"),
    [
        ("qnli", ["not_entailment", "entailment"], ("not_entailment", "entailment")),  # the order of the data
        ("qnli", ["yes", "no"], ("entailment", "not_entailment")),  # names that the leaderboard does not have
        ("qnli", None, ("entailment", "not_entailment")),
        ("sst2", ["negative", "positive"], ()),
    ],
)
def test_classes_have_the_names_of_the_leaderboard(
    task: str, stored: list[str] | None, expected: tuple[str, ...], model: str, tmp_path: Path
) -> None:
    rows = datasets.Dataset.from_dict({"label": [0, 1]})
    if stored:
        rows = rows.cast_column("label", datasets.ClassLabel(names=stored))
    rows.to_parquet(tmp_path / "test.parquet")
    assert GLUEDataModule(task, model, str(tmp_path)).class_names("test") == expected


# ---- invalid input ----------------------------------------------------------------------------------------------


def test_splits_with_different_class_orders_are_rejected(model: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]})
    names = ["entailment", "not_entailment"]
    for split, order in {"train": names, "validation": names[::-1]}.items():
        rows.cast_column("label", datasets.ClassLabel(names=order)).to_parquet(tmp_path / f"{split}.parquet")
    data = GLUEDataModule("rte", model, str(tmp_path), max_length=32)
    with pytest.raises(MisconfigurationException, match=r"entailment, not_.* in .*train.* not_.*validation"):
        data.setup("fit")


def test_an_unknown_task_is_rejected(model: str) -> None:
    with pytest.raises(MisconfigurationException, match=r"task='imdb'.*cola, sst2"):
        GLUEDataModule("imdb", model)


def test_a_missing_folder_is_rejected(model: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"data_dir='.*/nowhere'.*sst2.*Hub"):
        GLUEDataModule("sst2", model, str(tmp_path / "nowhere"))


def test_the_error_for_a_missing_split_names_the_expected_files(model: str, tmp_path: Path) -> None:
    glue_rows(get_task("sst2"), 5).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(MisconfigurationException, match=r"'validation'.*validation\.parquet.*validation-\*-of-"):
        GLUEDataModule("sst2", model, str(tmp_path), max_length=32).setup("fit")


@pytest.mark.parametrize("column", ["sentence", "label"])
def test_the_error_for_a_missing_column_names_file_and_columns(column: str, model: str, tmp_path: Path) -> None:
    rows = glue_rows(get_task("sst2"), 5).remove_columns(column)
    rows.to_parquet(tmp_path / "train.parquet")
    pattern = rf"train\.parquet .*'{column}'.* {', '.join(rows.column_names)}"
    with pytest.raises(MisconfigurationException, match=pattern):
        GLUEDataModule("sst2", model, str(tmp_path), max_length=32).setup("fit")


@pytest.mark.parametrize("wrong", [2, -1, None])
def test_the_error_for_labels_out_of_range_names_file_and_value(wrong: int | None, model: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"sentence": ["good"] * 3, "label": [0, wrong, 1]})
    rows.to_parquet(tmp_path / "validation.parquet")
    pattern = rf"validation\.parquet: .*'label'.* \[{wrong}\].* 0 to 1"
    with pytest.raises(MisconfigurationException, match=pattern):
        GLUEDataModule("sst2", model, str(tmp_path), max_length=32).setup("validate")


def test_scores_must_be_numbers(model: str, tmp_path: Path) -> None:
    rows = {"sentence1": ["a"] * 2, "sentence2": ["a"] * 2, "label": [float("nan"), 1.0]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(MisconfigurationException, match=r"\[nan\].*finite"):
        GLUEDataModule("stsb", model, str(tmp_path), max_length=32).setup("validate")


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_the_error_for_a_damaged_file_names_it(content: bytes, model: str, tmp_path: Path) -> None:
    (tmp_path / "validation.parquet").write_bytes(content)
    with pytest.raises(MisconfigurationException, match=r"validation\.parquet .*arquet"):
        GLUEDataModule("sst2", model, str(tmp_path)).setup("validate")


def test_the_error_for_a_file_without_rows_names_it(model: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"sentence": [], "label": []}).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(MisconfigurationException, match=r"validation\.parquet .* no data"):
        GLUEDataModule("sst2", model, str(tmp_path)).setup("validate")


def test_the_error_for_a_missing_text_names_file_and_row(model: str, tmp_path: Path) -> None:
    rows = {"sentence": ["good", None], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(MisconfigurationException, match=r"validation\.parquet: .*'sentence'.* row 1"):
        GLUEDataModule("sst2", model, str(tmp_path)).setup("validate")


def test_the_error_without_folder_and_hub_names_data_dir(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: str, split: str) -> None:
        raise ConnectionError("no connection")

    monkeypatch.setattr(files, "load_dataset", fail)
    with pytest.raises(MisconfigurationException, match=r"'train' of nyu-mll/glue \(rte\).*no connection.*data_dir"):
        GLUEDataModule("rte", model).setup("fit")


# ---- real data, if available ------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="PGB_DATA_DIR does not name a folder with real data")
@pytest.mark.parametrize(
    ("name", "train", "validation"), [("cola", 8551, 1043), ("mrpc", 3668, 408), ("stsb", 5749, 1500)]
)
def test_real_files_are_read_completely(name: str, train: int, validation: int, model: str) -> None:
    module = GLUEDataModule(name, model, str(REAL / name), max_length=64)
    module.setup("fit")
    assert (len(module.split("train")), len(module.split("validation"))) == (train, validation)
    assert sum(len(batch["labels"]) for batch in module.calibration_dataloader()) == 2048
