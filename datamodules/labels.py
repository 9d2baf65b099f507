"""What the labels of a table are, and their numbers for a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException

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
    """Find out what the labels of a table are, without a model that tells.

    Strings are names of classes, integers and booleans are classes, other numbers are values of a regression, and
    lists are several labels of a text, or one label for each word.

    Args:
        rows: The training rows.
        column: The column of labels.
        source: Description of the rows' source, for messages.
        are_words: Whether each text is a list of words.
        problem_type: What the labels are, if given.
        names: Names of the classes in the order of the model, if given.
        separator: What separates several labels in a string.

    Raises:
        MisconfigurationException: If labels are missing, or are not of one kind.
    """
    feature = rows.features[column]
    inner = getattr(feature, "feature", feature)
    is_list = inner is not feature or separator is not None
    values = distinct_values(rows[column], separator)
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
        return Labels(problem_type, len(names), tuple(names))
    if isinstance(inner, ClassLabel):
        return Labels(problem_type, len(inner.names), tuple(inner.names))
    if not numbers:
        return Labels(problem_type, len(values), tuple(sorted(map(str, values))))
    if fractions := [number for number in numbers if not float(number).is_integer()]:
        raise MisconfigurationException(
            f"{source}: column {column!r} has the number {fractions[0]}, but problem_type={problem_type!r} needs "
            "classes. Set problem_type='regression'."
        )
    classes = sorted({int(number) for number in numbers})
    if classes[0] == 0:
        return Labels(problem_type, max(classes[-1] + 1, 2))
    return Labels(problem_type, len(classes), tuple(map(str, classes)))


def distinct_values(column: Iterable[Any], separator: str | None = None) -> set[Any]:
    """Return the different labels of a column, those in lists one by one, without missing ones.

    Args:
        column: The values.
        separator: What separates several labels in a string.

    Example:
        >>> sorted(distinct_values(["joy|love", "joy"], separator="|"))
        ['joy', 'love']
    """
    found: set[Any] = set()
    for value in column:
        found.update(split_labels(value, separator) if separator or isinstance(value, list) else [value])
    return {value for value in found if value is not None and value == value}


def split_labels(value: Any, separator: str | None) -> list[Any]:
    """Return the labels of a row with several.

    Args:
        value: A list, or a string with a separator; ``None`` or an empty string is no label.
        separator: What separates the labels.
    """
    if not isinstance(value, str):
        return list(value or [])
    return [part.strip() for part in value.split(separator) if part.strip()]


class LabelEncoder:
    """Turns labels into what a model is trained on. Names are compared without case and punctuation if need be.

    Args:
        labels: The labels of the model.
        own_names: Names of the classes that the table's integers stand for, if it has them.
        column: Name of the column, for messages.
        source: Description of the rows' source, for messages.
        separator: What separates several labels in a string.
    """

    def __init__(
        self, labels: Labels, own_names: Sequence[str], column: str, source: str, separator: str | None = None
    ) -> None:
        self.labels = labels
        self.own_names = tuple(own_names)
        self.column = column
        self.source = source
        self.separator = separator
        self._numbers: Mapping[str, int] = {name: number for number, name in enumerate(labels.names)}
        self._normalized = {normalize_class_name(name): number for name, number in self._numbers.items()}
        if len(self._normalized) < len(self._numbers):  # names such as "+" and "-" are told apart only as they are
            self._normalized = {}
        # Integers are the table's own classes if their names are those of the model, in whatever order.
        self._translates = bool(own_names) and all(self._find(name) is not None for name in own_names)

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
        if isinstance(value, (int, float)):
            raise self._error(value, "a list of labels")
        several = split_labels(value, self.separator)
        if problem == "token_classification":
            return [self._number(each) for each in several]
        if len(several) == self.labels.num_labels and all(isinstance(each, (bool, float)) for each in several):
            return [float(each) for each in several]  # one 0 or 1 for each class
        chosen = {self._number(each) for each in several}
        return [float(number in chosen) for number in range(self.labels.num_labels)]

    def _number(self, value: Any) -> int:
        if isinstance(value, str):
            if (number := self._find(value)) is not None:
                return number
        elif isinstance(value, (int, float)) and float(value).is_integer():
            if self._translates and 0 <= value < len(self.own_names):
                return self._find(self.own_names[int(value)])  # type: ignore[return-value]  # checked above
            if 0 <= value < self.labels.num_labels and not self._has_numbers_for_names():
                return int(value)
            if (number := self._find(str(int(value)))) is not None:
                return number
        raise self._error(value, self._allowed())

    def _find(self, name: str) -> int | None:
        number = self._numbers.get(name)
        return self._normalized.get(normalize_class_name(name)) if number is None else number

    def _has_numbers_for_names(self) -> bool:
        """Return whether the classes are named by numbers, such as one to five stars."""
        return bool(self.labels.names) and all(name.lstrip("-").isdigit() for name in self.labels.names)

    def _allowed(self) -> str:
        count, names = self.labels.num_labels, self.labels.names
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        return f"an integer from 0 to {count - 1}" + (f", or one of {shown}" if names else "")

    def _error(self, value: Any, allowed: str) -> MisconfigurationException:
        unnamed = isinstance(value, str) and not self.labels.names
        remedy = "set label_names to the model's classes in their order" if unnamed else "pass another label_column"
        return MisconfigurationException(
            f"{self.source}: column {self.column!r} has the label {value!r}. It must be {allowed}. Correct the rows, "
            f"or {remedy}."
        )
