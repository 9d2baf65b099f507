"""Checks of texts and labels."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules.checks import check_labels, check_texts

GOOD = {"question": ["who", "where"], "sentence": ["", "here"], "label": [0, 1]}
TEXTS = ("question", "sentence")


def test_valid_rows_pass_including_empty_texts() -> None:
    check_texts(Dataset.from_dict(GOOD), TEXTS, (*TEXTS, "label"), "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": ["a", None]}, "file: .*'sentence'.* 1 of 2 .* row 1"),
        ({"question": [None, None]}, "file: .*'question'.* 2 of 2 .* row 0"),
        ({"sentence": [1, 2]}, "file: .*'sentence'.* int64"),
        ({"question": [], "sentence": [], "label": []}, "file .*no rows"),
    ],
)
def test_errors_about_texts_name_file_column_and_row(changes: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        check_texts(Dataset.from_dict({**GOOD, **changes}), TEXTS, (*TEXTS, "label"), "file")


def test_missing_and_present_columns_are_listed() -> None:
    rows = Dataset.from_dict(GOOD).remove_columns(["sentence", "label"])
    with pytest.raises(MisconfigurationException, match=r"file .*'sentence', 'label'.* question"):
        check_texts(rows, TEXTS, (*TEXTS, "label"), "file")


def test_only_selected_rows_are_checked() -> None:
    rows = Dataset.from_dict({"sentence": ["a", None, "b"]})
    check_texts(rows.select([0, 2]), ("sentence",), ("sentence",), "file")
    with pytest.raises(MisconfigurationException, match=r"1 of 2 .* row 1"):
        check_texts(rows.select([0, 1]), ("sentence",), ("sentence",), "file")


@pytest.mark.parametrize(
    ("labels", "num_labels", "message"),
    [
        ([0, 2, 1], 2, r"file: .*'label'.* \[2\].* 0 to 1"),
        (["yes", "no"], 2, r"\['yes', 'no'\]"),
        ([0.5, 1.0], 2, r"\[0\.5\]"),
        (["high"], 1, r"\['high'\].*finite"),
        ([None, 1.0], 1, r"\[None\]"),
    ],
)
def test_errors_about_labels_have_their_values(labels: list[Any], num_labels: int, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        check_labels(Dataset.from_dict({"label": labels}), num_labels, "file")


def test_valid_labels_pass() -> None:
    check_labels(Dataset.from_dict({"label": [0.0, 1.0]}), 2, "file")
    check_labels(Dataset.from_dict({"label": [0, 5]}), 1, "file")
    check_labels(Dataset.from_dict({"label": [0, 1]}).cast_column("label", ClassLabel(names=["a", "b"])), 2, "file")
