"""What is wrong with a file of rows, said before anything is computed from it."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException


def check_texts(rows: Dataset, text_columns: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    """Require rows, all the columns needed, and a text in every row's text columns.

    Args:
        rows: Rows as they were read.
        text_columns: Columns that hold texts; an empty text is one.
        needed: All columns that must be there.
        where: Where the rows came from.

    Raises:
        MisconfigurationException: If something is missing; the message says what, and where.

    Example:
        >>> check_texts(Dataset.from_dict({"sentence": ["a film"]}), ("sentence",), ("sentence",), "train.parquet")
    """
    absent = [column for column in needed if column not in rows.column_names]
    if absent:
        raise MisconfigurationException(
            f"{where} has no column {', '.join(map(repr, absent))}; its columns are: {', '.join(rows.column_names)}."
        )
    if len(rows) == 0:
        raise MisconfigurationException(f"{where} has no rows; give a file with some.")
    table = rows.select_columns(list(text_columns)).with_format("arrow")[:]
    for column in text_columns:
        texts = table[column]
        if texts.null_count:
            raise MisconfigurationException(
                f"{where}: column {column!r} has no text in {texts.null_count} of {len(rows)} rows, first in row "
                f"{texts.is_null().to_pylist().index(True)}; write one there, or leave these rows out."
            )
        if "string" not in str(texts.type):
            raise MisconfigurationException(f"{where}: column {column!r} holds {texts.type}; it must hold texts.")


def check_labels(rows: Dataset, num_labels: int, where: str) -> None:
    """Require a label in range in every row.

    Args:
        rows: Rows with a column `label`.
        num_labels: Number of classes, or 1 for scores.
        where: Where the rows came from.

    Raises:
        MisconfigurationException: If a label is wrong; the message has the first of these, and says where.

    Example:
        >>> check_labels(Dataset.from_dict({"label": [0, 1, 1]}), 2, "train.parquet")
    """
    found = rows.unique("label")
    if num_labels == 1:
        wrong = [label for label in found if not isinstance(label, (int, float)) or not np.isfinite(label)]
        allowed = "finite numbers"
    else:
        wrong = [label for label in found if label not in range(num_labels)]
        allowed = f"whole numbers from 0 to {num_labels - 1}"
    if wrong:
        raise MisconfigurationException(f"{where}: column 'label' holds {wrong[:5]}; labels must be {allowed}.")
