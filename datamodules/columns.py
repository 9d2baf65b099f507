"""Find the columns of texts and labels in a table, unless they are given by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, Value
from lightning.fabric.utilities.exceptions import MisconfigurationException

#: Names of two columns for pairs of texts, as in common data sets.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "answer"),
    ("text_a", "text_b"),
    ("text1", "text2"),
)

#: Names of columns with lists of words, each of which may have a label.
WORDS = ("tokens", "words")

#: Names of columns with labels.
LABELS = ("label", "labels", "ner_tags", "tags", "target", "class", "category", "score")

#: Names of columns that identify rows.
IDENTIFIERS = ("id", "idx", "index", "uid", "guid", "pair_id")


@dataclass(frozen=True)
class Columns:
    """The columns that are used.

    Args:
        texts: One column, or two for pairs of texts.
        label: The column of labels; ``None`` if there is none.
        are_words: Whether the column of texts has lists of words.
    """

    texts: tuple[str, ...]
    label: str | None
    are_words: bool = False


def find_columns(
    rows: Dataset, source: str, text_columns: Sequence[str] | None = None, label_column: str | None = None
) -> Columns:
    """Find the columns.

    Args:
        rows: The rows.
        source: Description of the rows' source, for messages.
        text_columns: The columns of texts, if given.
        label_column: The column of labels, if given.

    Raises:
        MisconfigurationException: If a given column does not exist, or the columns of texts are ambiguous.

    Example:
        >>> find_columns(Dataset.from_dict({"review": ["good"], "label": [1]}), "reviews.csv")
        Columns(texts=('review',), label='label', are_words=False)
    """
    given = [("text_columns", name) for name in text_columns or ()]
    given += [] if label_column is None else [("label_column", label_column)]
    for setting, name in given:
        if name not in rows.column_names:
            raise MisconfigurationException(
                f"{setting}={name!r} is not a column of {source}. Its columns are {', '.join(rows.column_names)}."
            )
    named = _by_name(rows.column_names)
    label = label_column or next((named[name] for name in LABELS if name in named), None)
    texts = tuple(text_columns or _find_texts(rows, source, label))
    if label in texts:
        raise MisconfigurationException(
            f"Column {label!r} of {source} cannot have both texts and labels. Set text_columns and label_column to "
            "different columns."
        )
    if not 1 <= len(set(texts)) == len(texts) <= 2:
        raise MisconfigurationException(
            f"text_columns={list(texts)} must be one column, or two different ones for pairs of texts."
        )
    are_words = len(texts) == 1 and not isinstance(rows.features[texts[0]], Value)
    return Columns(texts=texts, label=label, are_words=are_words)


def _by_name(columns: Sequence[str]) -> dict[str, str]:
    """Return columns by their names in lower case and without spaces around them; an exact name has precedence."""
    return {**{name.strip().lower(): name for name in reversed(columns)}, **{name: name for name in columns}}


def _find_texts(rows: Dataset, source: str, label: str | None) -> tuple[str, ...]:
    named = _by_name(rows.column_names)
    for first, second in PAIRS:
        if first in named and second in named:
            return (named[first], named[second])
    for name in WORDS:
        if name in named and not isinstance(rows.features[named[name]], Value):
            return (named[name],)
    others = {label, *(named[name] for name in IDENTIFIERS if name in named)}
    features = {name: feature for name, feature in rows.features.items() if name not in others}
    texts = [name for name, each in features.items() if isinstance(each, Value) and "string" in each.dtype]
    if named.get("text") in texts:
        return (named["text"],)
    if len(texts) != 1:
        found = f"{len(texts)} columns of texts: {', '.join(texts)}" if texts else "no column of texts"
        raise MisconfigurationException(
            f"text_columns=None cannot be resolved: {source} has {found}. Its columns are "
            f"{', '.join(rows.column_names)}. Set text_columns to one of them, or to two for pairs of texts."
        )
    return (texts[0],)
