"""Determine the kind of labels in a table, and encode them for a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules.label_numbers import (
    LabelNumbers,
    are_positions,
    numbers_in_names,
    read_numbers,
    to_integer,
)
from pgb_lightning.glue_tasks import normalize_class_name
from pgb_lightning.heads import Labels, ProblemType


def find_labels(
    rows: Dataset,
    column: str,
    source: str,
    are_words: bool = False,
    problem_type: ProblemType | None = None,
    names: Sequence[str] | None = None,
    separator: str | None = None,
) -> Labels:
    """Determine the labels of a table without a fine-tuned model.

    Strings are names of classes, integers and booleans are classes, other numbers are regression values, and lists are
    multiple labels of a text, or one label for each word.

    Args:
        rows: The training rows.
        column: The column of labels.
        source: Description of the rows' source, for messages.
        are_words: Whether each text is a list of words.
        problem_type: The kind of labels, if given.
        names: Names of the classes in the order of the model, if given.
        separator: Separator of multiple labels in one string.

    Raises:
        MisconfigurationException: If labels are missing, are of different kinds, or are all the same class.
    """
    feature = rows.features[column]
    inner = getattr(feature, "feature", feature)
    is_list = inner is not feature or separator is not None
    cells = split_cells(rows[column], separator) if separator else list(rows[column])
    values = distinct_values(cells)
    if not values:
        raise MisconfigurationException(f"{source}: column {column!r} has no labels. Pass another label_column.")
    numbers = [value for value in values if isinstance(value, (int, float))]
    if numbers and len(numbers) < len(values):
        mixed = [next(value for value in values if isinstance(value, str)), numbers[0]]
        raise MisconfigurationException(f"{source}: column {column!r} has names and numbers, such as {mixed}. Use one.")
    if problem_type is None:
        is_value = bool(numbers) and not is_list and any(isinstance(value, float) for value in numbers)
        if are_words:
            problem_type = "token_classification"
        elif is_list:
            problem_type = "multi_label_classification"
        else:
            problem_type = "regression" if is_value else "single_label_classification"
    if problem_type == "regression":
        return Labels(problem_type, 1)
    if names is not None:
        labels = Labels(problem_type, len(names), tuple(names))
    elif isinstance(inner, ClassLabel):
        labels = Labels(problem_type, len(inner.names), tuple(inner.names))
    elif not numbers:
        labels = Labels(problem_type, len(values), tuple(sorted(map(str, values))))
    elif problem_type == "multi_label_classification" and read_numbers(cells).are_flags:
        labels = Labels(problem_type, len(cells[0]))
    else:
        labels = _numbered_labels(problem_type, numbers, f"{source}: column {column!r}")
    if labels.num_labels < 2:
        raise MisconfigurationException(
            f"{source}: column {column!r} has the one class {', '.join(map(repr, labels.names))}. Use rows of two "
            "classes or more, or set label_names to all classes."
        )
    return labels


def _numbered_labels(problem_type: ProblemType, numbers: Sequence[float], where: str) -> Labels:
    """Return the labels of a column of numbers: classes from 0, or classes named by their numbers."""
    if fractions := [number for number in numbers if not float(number).is_integer()]:
        raise MisconfigurationException(
            f"{where} has the number {fractions[0]}, but problem_type={problem_type!r} needs classes. Set "
            "problem_type='regression'."
        )
    classes = sorted({int(number) for number in numbers})
    if classes[0] == 0:
        return Labels(problem_type, max(classes[-1] + 1, 2))
    return Labels(problem_type, len(classes), tuple(map(str, classes)))


def distinct_values(column: Iterable[Any]) -> set[Any]:
    """Return the distinct labels of a column, with lists flattened and missing labels left out.

    Args:
        column: The values.

    Example:
        >>> sorted(distinct_values([["joy", "love"], ["joy"], None]))
        ['joy', 'love']
    """
    found: set[Any] = set()
    for value in column:
        found.update(value if isinstance(value, list) else [value])
    return {value for value in found if value is not None and value == value}


def split_labels(value: Any, separator: str | None) -> list[Any]:
    """Return the labels of a row that can have multiple labels.

    Args:
        value: A list, a string or a number; ``None`` or an empty string means no labels.
        separator: The separator of labels in a string. Without one, a string is one label.
    """
    if isinstance(value, str):
        parts = value.split(separator) if separator else [value]
        return [part.strip() for part in parts if part.strip()]
    return [value] if isinstance(value, (int, float)) else list(value or [])


def split_cells(column: Iterable[Any], separator: str) -> list[list[Any]]:
    """Split the labels of each row. They are read as integers if all labels of the column are.

    Args:
        column: The values.
        separator: The separator of labels in a string.

    Example:
        >>> split_cells(["0|2", "1"], "|"), split_cells(["joy|2", "1"], "|")
        ([[0, 2], [1]], [['joy', '2'], ['1']])
    """
    cells = [split_labels(value, separator) for value in column]
    numbers = [[to_integer(label) for label in labels] for labels in cells]
    return cells if any(isinstance(label, str) for labels in numbers for label in labels) else numbers


class LabelEncoder:
    """Encodes labels as the numbers that a model is trained on. If necessary, names match without case and punctuation.

    Args:
        labels: The labels of the model.
        own_names: Names of the classes for which the table's integers stand, if it has them.
        column: Name of the column, for messages.
        source: Description of the rows' source, for messages.
        separator: Separator of multiple labels in one string.
        numbers: How numbers are used in the table.

    Raises:
        MisconfigurationException: If the table's integers may be either class indices or numbers in class names.
    """

    def __init__(
        self,
        labels: Labels,
        own_names: Sequence[str],
        column: str,
        source: str,
        separator: str | None = None,
        numbers: LabelNumbers | None = None,
    ) -> None:
        self.labels = labels
        # Names that are only numbers carry no information.
        self.own_names = () if are_positions(own_names) else tuple(own_names)
        self.column = column
        self.source = source
        self.separator = separator
        self.numbers = numbers or LabelNumbers()
        names = labels.names or [f"LABEL_{number}" for number in range(labels.num_labels)]
        # Classes with the same name, or with variants of one name, can only be found by number.
        self._numbers = _unique(names)
        self._normalized = _unique([normalize_class_name(name) for name in names])
        if len(self._normalized) < len(names):  # names such as "+" and "-" differ only in punctuation
            self._normalized = {}
        self._in_names = numbers_in_names(labels.names)
        self._is_by_name = self._reads_by_name()

    def encode(self, value: Any) -> int | float | list[int] | list[float]:
        """Return the label of one row.

        Args:
            value: The value in the table.

        Raises:
            MisconfigurationException: If it is missing, or is not a label of the model.
        """
        problem = self.labels.problem_type
        if problem == "regression":
            if isinstance(value, (int, float)) and math.isfinite(value):
                return float(value)
            raise self._error(value, "a finite number")
        if problem == "single_label_classification":
            return self._number(value)
        if value is None and problem == "token_classification":
            raise self._error(value, "a list with a label for each word")
        if isinstance(value, (int, float)) and not self.separator:
            raise self._error(value, "a list of labels")
        if problem == "token_classification":
            is_plain = isinstance(value, str) and not self.separator
            return [self._number(each) for each in (value.split() if is_plain else split_labels(value, self.separator))]
        several = split_labels(value, self.separator)
        if self.numbers.are_flags and self.separator:
            several = [to_integer(each) for each in several]
        is_complete = len(several) == self.labels.num_labels
        if self.numbers.are_flags or (is_complete and all(isinstance(each, (bool, float)) for each in several)):
            if is_complete and all(each in (0, 1) for each in several):
                return [float(each) for each in several]
            raise self._error(value, f"a list of {self.labels.num_labels} numbers, a 0 or 1 for each class")
        chosen = {self._number(each) for each in several}
        return [float(number in chosen) for number in range(self.labels.num_labels)]

    def _number(self, value: Any) -> int:
        if isinstance(value, str):
            if (number := self._find(value)) is not None:
                return number
            if self.separator and self.labels.problem_type != "single_label_classification":
                value = to_integer(value)
        if isinstance(value, bool):
            return self._of_bool(value)
        elif isinstance(value, (int, float)) and float(value).is_integer():
            if self.own_names and self.labels.names:
                return self._of_own(int(value))
            if self._is_by_name:
                if (number := self._in_names.get(int(value))) is not None:
                    return number
            elif 0 <= value < self.labels.num_labels:
                return int(value)
        raise self._error(value, self._allowed())

    def _of_bool(self, value: bool) -> int:
        """Return the class of a boolean. A CSV file also yields booleans for classes named true and false."""
        for pair in (("false", "true"), ("no", "yes")):
            found = [self._find(name) for name in pair]
            if None not in found:
                return found[value]  # type: ignore[return-value]  # checked above
        if self._is_by_name:
            raise self._error(value, self._allowed())
        return int(value)

    def _of_own(self, value: int) -> int:
        """Return the model's class by the name that the table gives to a number."""
        if not 0 <= value < len(self.own_names):
            raise self._error(value, f"an integer from 0 to {len(self.own_names) - 1}")
        name = self.own_names[value]
        number = self._find(name)
        if number is None and name.lstrip("-").isdigit():
            number = self._in_names.get(int(name))
        if number is None:
            raise self._error(name, f"one of {self._shown_names()}")
        return number

    def _find(self, name: str) -> int | None:
        number = self._numbers.get(name)
        return self._normalized.get(normalize_class_name(name)) if number is None else number

    def _reads_by_name(self) -> bool:
        """Return whether integers are the numbers in the names of the classes, as for 1 to 5 stars."""
        names, numbers = self._in_names, self.numbers.integers
        if not names or are_positions(self.labels.names):
            return False
        if all(name.lstrip("-").isdigit() for name in self.labels.names):
            return True
        are_named = bool(numbers) and numbers <= names.keys()
        are_classes = numbers <= set(range(self.labels.num_labels))
        if are_named and are_classes and not self.own_names and any(names[number] != number for number in numbers):
            number, count = max(numbers), len(names)
            by_name, by_number = (self.labels.names[each] for each in (names[number], number))
            raise MisconfigurationException(
                f"{self.source}: column {self.column!r} has integers such as {number}, which may be the class "
                f"{by_name!r} or the class {by_number!r}. Set label_names to {list(map(str, names))} for the first, or "
                f"to {list(map(str, range(count)))} for the second."
            )
        return are_named and not are_classes

    def _allowed(self) -> str:
        integers = f"an integer from 0 to {self.labels.num_labels - 1}"
        return f"{integers}, or one of {self._shown_names()}" if self.labels.names else integers

    def _shown_names(self) -> str:
        names = self.labels.names
        return ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")

    def _error(self, value: Any, allowed: str) -> MisconfigurationException:
        remedy = "pass another label_column"
        if value is None:
            remedy += ", or set use_labels=False"
        elif isinstance(value, str) and self.labels.problem_type != "regression":
            remedy = "set label_names to the names that the table uses, in the order of the model's classes"
        return MisconfigurationException(
            f"{self.source}: column {self.column!r} has the label {value!r}. It must be {allowed}. Correct the rows, "
            f"or {remedy}."
        )


def _unique(names: Sequence[str]) -> dict[str, int]:
    """Return the index of each name that occurs only once and is not empty."""
    counts = Counter(names)
    return {name: number for number, name in enumerate(names) if name and counts[name] == 1}
