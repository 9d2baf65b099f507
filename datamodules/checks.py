"""Check rows before they are used."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning._compat import number_in_table


def check_texts(rows: Dataset, text_columns: tuple[str, ...], required: tuple[str, ...], source: str) -> None:
    """Check that there are rows, that no required column is missing, and that text columns contain only strings.

    Args:
        rows: The rows.
        text_columns: Columns that must contain strings. Empty strings are allowed.
        required: All required columns.
        source: Description of the rows' source, for the message.

    Raises:
        MisconfigurationException: If a check fails.

    Example:
        >>> check_texts(Dataset.from_dict({"sentence": ["a film"]}), ("sentence",), ("sentence",), "train.parquet")
    """
    _check_columns(rows, required, source)
    table = rows.select_columns(list(text_columns)).with_format("arrow")[:]
    for column in text_columns:
        texts = table[column]
        if texts.null_count:
            raise MisconfigurationException(
                f"{source}: column {column!r} has no text in {texts.null_count} of {len(rows)} rows, first in row "
                f"{number_in_table(rows, texts.is_null().to_pylist().index(True))}. Add texts, or remove these rows."
            )
        if "string" not in str(texts.type):
            raise MisconfigurationException(
                f"{source}: column {column!r} has the type {texts.type}, but must have strings. Convert it to strings."
            )


def check_words(rows: Dataset, text_columns: tuple[str, ...], required: tuple[str, ...], source: str) -> None:
    """Check that there are rows, that no required column is missing, and that every text is a list of words.

    Args:
        rows: The rows.
        text_columns: The column that must contain lists of strings.
        required: All required columns.
        source: Description of the rows' source, for the message.

    Raises:
        MisconfigurationException: If a check fails.

    Example:
        >>> check_words(Dataset.from_dict({"tokens": [["a", "film"]]}), ("tokens",), ("tokens",), "train.parquet")
    """
    _check_columns(rows, required, source)
    for column in text_columns:
        words = rows.select_columns([column]).with_format("arrow")[:][column]
        if "string" not in str(words.type) or "list" not in str(words.type):
            raise MisconfigurationException(
                f"{source}: column {column!r} has the type {words.type}, but must have lists of words."
            )
        counts = words.combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        if not counts.all():
            raise MisconfigurationException(
                f"{source}: column {column!r} has no words in {int((counts == 0).sum())} of {len(rows)} rows, first in "
                f"row {number_in_table(rows, int(np.flatnonzero(counts == 0)[0]))}. Remove these rows."
            )
        if missing := words.combine_chunks().flatten().null_count:
            raise MisconfigurationException(
                f"{source}: column {column!r} has {missing} words that are null. Replace them, or remove these rows."
            )


def check_labels(rows: Dataset, num_labels: int, source: str) -> None:
    """Check that every row has a label in range.

    Args:
        rows: Rows with a column ``label``.
        num_labels: Number of classes, or 1 for scores.
        source: Description of the rows' source, for the message.

    Raises:
        MisconfigurationException: If a label is missing or out of range. The message lists the first such labels.

    Example:
        >>> check_labels(Dataset.from_dict({"label": [0, 1, 1]}), 2, "train.parquet")
    """
    labels = rows.unique("label")
    if num_labels == 1:
        wrong = [label for label in labels if not isinstance(label, (int, float)) or not np.isfinite(label)]
        allowed = "finite numbers"
    else:
        wrong = [label for label in labels if label not in range(num_labels)]
        allowed = f"integers from 0 to {num_labels - 1}"
    if wrong:
        raise MisconfigurationException(
            f"{source}: column 'label' has {wrong[:5]}. Labels must be {allowed}. Correct or remove these rows."
        )


def _check_columns(rows: Dataset, required: tuple[str, ...], source: str) -> None:
    """Check that there are rows, and that no required column is missing."""
    missing = [column for column in required if column not in rows.column_names]
    if missing:
        raise MisconfigurationException(
            f"{source} has no column {', '.join(map(repr, missing))}. Its columns are {', '.join(rows.column_names)}. "
            "Add or rename a column."
        )
    if len(rows) == 0:
        raise MisconfigurationException(f"{source} has no rows. Pass a file with rows.")
