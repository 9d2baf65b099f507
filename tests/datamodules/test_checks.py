from __future__ import annotations

import re
from typing import Any

import pytest
from datasets import ClassLabel, Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules.checks import check_labels, check_texts

GOOD = {"question": ["who", "where"], "sentence": ["", "here"], "label": [0, 1]}
TEXTS = ("question", "sentence")


def test_good_rows_pass_empty_texts_included() -> None:
    check_texts(Dataset.from_dict(GOOD), TEXTS, (*TEXTS, "label"), "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": ["a", None]}, "file: column 'sentence' has no text in 1 of 2 rows, first in row 1"),
        ({"question": [None, None]}, "file: column 'question' has no text in 2 of 2 rows, first in row 0"),
        ({"sentence": [1, 2]}, "file: column 'sentence' holds int64; it must hold texts"),
        ({"question": [], "sentence": [], "label": []}, "file has no rows"),
    ],
)
def test_bad_texts_name_file_column_and_row(changes: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        check_texts(Dataset.from_dict({**GOOD, **changes}), TEXTS, (*TEXTS, "label"), "file")


def test_absent_columns_are_listed_with_those_there() -> None:
    rows = Dataset.from_dict(GOOD).remove_columns(["sentence", "label"])
    with pytest.raises(MisconfigurationException, match="file has no column 'sentence', 'label'; its columns are: q"):
        check_texts(rows, TEXTS, (*TEXTS, "label"), "file")


def test_only_the_rows_that_are_selected_count() -> None:
    rows = Dataset.from_dict({"sentence": ["a", None, "b"]})
    check_texts(rows.select([0, 2]), ("sentence",), ("sentence",), "file")
    with pytest.raises(MisconfigurationException, match="in 1 of 2 rows, first in row 1"):
        check_texts(rows.select([0, 1]), ("sentence",), ("sentence",), "file")


@pytest.mark.parametrize(
    ("labels", "num_labels", "message"),
    [
        ([0, 2, 1], 2, r"file: column 'label' holds \[2\]; labels must be whole numbers from 0 to 1"),
        (["yes", "no"], 2, r"holds \['yes', 'no'\]"),
        ([0.5, 1.0], 2, r"holds \[0.5\]"),
        (["high"], 1, r"holds \['high'\]; labels must be finite numbers"),
        ([None, 1.0], 1, r"holds \[None\]"),
    ],
)
def test_bad_labels_are_shown(labels: list[Any], num_labels: int, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        check_labels(Dataset.from_dict({"label": labels}), num_labels, "file")


def test_good_labels_pass() -> None:
    check_labels(Dataset.from_dict({"label": [0.0, 1.0]}), 2, "file")
    check_labels(Dataset.from_dict({"label": [0, 5]}), 1, "file")
    check_labels(Dataset.from_dict({"label": [0, 1]}).cast_column("label", ClassLabel(names=["a", "b"])), 2, "file")
