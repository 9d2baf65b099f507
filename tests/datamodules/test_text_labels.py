"""Labels of any table: which class each becomes, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from helpers.text_tables import encoded, reviews
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForTokenClassification

from pgb_lightning.datamodules import TextDataModule
from pgb_lightning.heads import Labels

Make = Callable[..., TextDataModule]


STARS = ("1 star", "2 stars", "3 stars")


def test_names_of_classes_are_numbered_in_alphabetical_order(make: Make) -> None:
    data = make(reviews(label=lambda row: ("pos", "neg")[row % 2]))
    assert data.label_names == ("neg", "pos")
    numbers = dict(zip(data.load_rows("train")["id"], data.split("train")["labels"], strict=True))
    assert all(number == (int(name[1:]) + 1) % 2 for name, number in numbers.items())


def test_a_fine_tuned_model_determines_the_numbers_of_names(make: Make, fine_tuned: Callable[..., str]) -> None:
    model = fine_tuned(names=("Positive", "NEGATIVE", "neutral"))
    data = make(reviews(label=lambda row: ("positive", "negative")[row % 2]), model_name_or_path=model)
    assert data.labels == Labels("single_label_classification", 3, ("Positive", "NEGATIVE", "neutral"))
    numbers = dict(zip(data.load_rows("train")["id"], data.split("train")["labels"], strict=True))
    assert all(number == int(name[1:]) % 2 for name, number in numbers.items())


def test_classes_of_the_table_in_another_order_are_translated(tmp_path: Path, fine_tuned: Callable[..., str]) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = Dataset.from_dict({"text": ["good film"] * 20, "label": [0, 1] * 10}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    data = TextDataModule(str(tmp_path / "rows.parquet"), fine_tuned(names=("pos", "neg")), max_length=32)
    own = data.load_rows("train")["label"][:]
    assert data.split("train")["labels"][:] == [1 - label for label in own]


@pytest.mark.parametrize("names", [["pos", "neg"], ["unsure", "negative", "positive"]])
def test_classes_of_the_table_that_the_model_does_not_have_are_refused(
    names: list[str], tmp_path: Path, fine_tuned: Callable[..., str]
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = Dataset.from_dict({"text": ["good film"] * 20, "label": [0] * 20}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    model = fine_tuned(names=("negative", "positive"))
    with pytest.raises(MisconfigurationException, match=rf"the label '{names[0]}'.*'negative'.*label_names"):
        TextDataModule(str(tmp_path / "rows.parquet"), model, max_length=32).split("train")


def test_stars_are_classes_named_by_their_number(make: Make) -> None:
    data = make(reviews(label=lambda row: row % 5 + 1))
    assert data.labels == Labels("single_label_classification", 5, ("1", "2", "3", "4", "5"))
    assert set(data.split("train")["labels"]) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("name", "value", "separator"),
    [
        ("rows.csv", lambda row: "joy | anger" if row % 2 else "", "|"),
        ("rows.jsonl", lambda row: ["joy", "anger"] if row % 2 else [], None),
    ],
)
def test_several_labels_are_a_number_for_each_class(
    name: str, value: Callable[[int], Any], separator: str | None, make: Make
) -> None:
    data = make(reviews(labels=value), name, label_separator=separator)
    assert data.labels == Labels("multi_label_classification", 2, ("anger", "joy"))
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert {tuple(row) for row in batch["labels"].tolist()} <= {(0.0, 0.0), (1.0, 1.0)}


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (("0|2", "1"), ("a", "b", "c"), {"0|2": [1, 0, 1], "1": [0, 1, 0]}),
        (("1", "2"), ("a", "b", "c"), {"1": [0, 1, 0], "2": [0, 0, 1]}),  # the CSV file yields integers
        (("1|3", "2"), STARS, {"1|3": [1, 0, 1], "2": [0, 1, 0]}),
        (("0|1|1", "1|0|0"), ("a", "b", "c"), {"0|1|1": [0, 1, 1], "1|0|0": [1, 0, 0]}),
        (("0|1|1", "1|0|0"), (), {"0|1|1": [0, 1, 1], "1|0|0": [1, 0, 0]}),
        (("0|2", "1"), (), {"0|2": [1, 0, 1], "1": [0, 1, 0]}),
        (("joy|2", "2"), (), {"joy|2": [1, 1], "2": [1, 0]}),
    ],
)
def test_numbers_in_cells_with_a_separator_are_those_of_lists(
    values: tuple[str, ...],
    names: tuple[str, ...],
    expected: dict[str, list[int]],
    make: Make,
    fine_tuned: Callable[..., str],
) -> None:
    model = fine_tuned(names=names, problem_type="multi_label_classification") if names else None
    settings = {"model_name_or_path": model} if model else {}
    data = make(reviews(labels=lambda row: values[row % len(values)]), label_separator="|", **settings)
    assert encoded(data) == expected


@pytest.mark.parametrize("is_fine_tuned", [True, False])
@pytest.mark.parametrize("names", [("so so", "very good"), ("fiction", "science", "science fiction")])
def test_a_text_without_a_separator_is_one_label(
    names: tuple[str, ...], is_fine_tuned: bool, make: Make, fine_tuned: Callable[..., str]
) -> None:
    model = fine_tuned(names=names, problem_type="multi_label_classification")
    settings = {"model_name_or_path": model} if is_fine_tuned else {"problem_type": "multi_label_classification"}
    data = make(reviews(labels=lambda row: names[row % len(names)]), **settings)
    assert encoded(data) == {name: [float(name == other) for other in names] for name in names}


@pytest.mark.parametrize("names", [("True", "False"), ("yes", "no")])
def test_true_and_false_of_a_csv_file_are_the_classes_of_these_names(
    names: tuple[str, str], make: Make, fine_tuned: Callable[..., str]
) -> None:
    data = make(reviews(label=lambda row: row % 2 == 0), model_name_or_path=fine_tuned(names=names))
    assert encoded(data) == {"True": 0, "False": 1}


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ((1, 2, 3), {}, {"1": 0, "2": 1, "3": 2}),
        ((0, 1, 2), {}, {"0": 0, "1": 1, "2": 2}),
        ((1, 2), {"label_names": ["1", "2", "3"]}, {"1": 0, "2": 1}),
        ((1, 2), {"label_names": ["0", "1", "2"]}, {"1": 1, "2": 2}),
    ],
)
def test_integers_are_the_numbers_in_names_if_they_can_be_nothing_else(
    values: tuple[int, ...],
    settings: dict[str, Any],
    expected: dict[str, int],
    make: Make,
    fine_tuned: Callable[..., str],
) -> None:
    rows = reviews(label=lambda row: values[row % len(values)])
    assert encoded(make(rows, model_name_or_path=fine_tuned(names=STARS), **settings)) == expected


@pytest.mark.parametrize("values", [([0, 1, 1], [1, 0, 0]), ([0.0, 1.0, 1.0], [1.0, 0.0, 0.0]), ([False, True, True],)])
@pytest.mark.parametrize("is_fine_tuned", [True, False])
def test_lists_of_zeros_and_ones_are_a_number_for_each_class(
    values: tuple[list[float], ...], is_fine_tuned: bool, make: Make, fine_tuned: Callable[..., str]
) -> None:
    model = fine_tuned(names=("a", "b", "c"), problem_type="multi_label_classification")
    settings = {"model_name_or_path": model} if is_fine_tuned else {}
    data = make(reviews(labels=lambda row: values[row % len(values)]), "rows.jsonl", **settings)
    assert data.num_labels == 3
    assert encoded(data) == {str(value): [float(each) for each in value] for value in values}


@pytest.mark.parametrize(
    ("label", "config", "settings", "message"),
    [
        (lambda row: row % 4, {"num_labels": 3}, {}, r"the label 3\..*0 to 2"),
        (lambda row: "pos", {"num_labels": 2}, {}, r"the label 'pos'.*label_names"),
        (lambda row: "odd", {"names": ("pos", "neg")}, {}, r"the label 'odd'.*'pos', 'neg'"),
        (lambda row: "C#", {"names": ("C++", "Java")}, {}, r"the label 'C#'.*'C\+\+', 'Java'"),
        (lambda row: row % 3 - 1, {"names": ("-1", "0")}, {}, r"the label 1\..*'-1', '0'"),
        (
            lambda row: 1 + row % 2,
            {"names": STARS},
            {},
            r"integers such as 2.*'2 stars'.*'3 stars'.*label_names",
        ),
        (lambda row: 1, {"num_labels": 3}, {"label_names": ["a", "b"]}, r"label_names has 2 .*3 labels"),
        (lambda row: 1, {"num_labels": 3}, {"problem_type": "regression"}, r"problem_type='regression'"),
        (lambda row: 1, {"auto": AutoModelForTokenClassification}, {}, r"'token_classification'"),
        (lambda row: 1, {"problem_type": "ranking"}, {}, r"problem_type='ranking'.*'regression'"),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused(
    label: Callable[[int], Any],
    config: dict[str, Any],
    settings: dict[str, Any],
    message: str,
    make: Make,
    fine_tuned: Callable[..., str],
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        make(reviews(label=label), model_name_or_path=fine_tuned(**config), **settings)
