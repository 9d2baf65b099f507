"""The meaning of numbers in a column of labels: positions of classes, numbers in class names, or flags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: A number in the name of a class. A minus after a letter or digit is read as a hyphen.
_NUMBER = re.compile(r"(?<!\w)-\d+|\d+")


@dataclass(frozen=True)
class LabelNumbers:
    """How numbers are used in a column of labels, judging by all training rows.

    Args:
        are_flags: Whether each row has a list with a 0 or 1 for each class.
        integers: The distinct integers, if they are not flags.
    """

    are_flags: bool = False
    integers: frozenset[int] = field(default_factory=frozenset)


def read_numbers(values: Iterable[Any], num_labels: int | None = None, may_be_flags: bool = True) -> LabelNumbers:
    """Determine how numbers are used in a column of labels.

    Args:
        values: The labels of all training rows.
        num_labels: Number of classes, if known.
        may_be_flags: Whether lists may have a 0 or 1 for each class; not so in token classification.

    Example:
        >>> read_numbers([[0, 1, 1], [1, 0, 0]]).are_flags, read_numbers([[0, 2], [1]]).are_flags
        (True, False)
    """
    rows = list(values)
    lists = [row if isinstance(row, (list, tuple)) else [row] for row in rows]
    lengths = {len(row) for row in lists}
    if may_be_flags and len(lengths) == 1 and all(isinstance(row, (list, tuple)) for row in rows):
        [length] = lengths
        are_zero_or_one = all(isinstance(each, (int, float)) and each in (0, 1) for row in lists for each in row)
        if length == (num_labels or max(length, 2)) and are_zero_or_one:
            return LabelNumbers(are_flags=True)
    numbers = {each for row in lists for each in row if isinstance(each, (int, float)) and not isinstance(each, bool)}
    return LabelNumbers(integers=frozenset(int(each) for each in numbers if float(each).is_integer()))


def to_integer(label: Any) -> Any:
    """Return the integer that a text consists of; other labels unchanged.

    Example:
        >>> to_integer("-1"), to_integer("1 star"), to_integer(2)
        (-1, '1 star', 2)
    """
    return int(label) if isinstance(label, str) and re.fullmatch(r"-?\d+", label) else label


def numbers_in_names(names: Sequence[str]) -> Mapping[int, int]:
    """Return the class of each number, if every name has exactly one number and all differ, as for 1 to 5 stars.

    Example:
        >>> numbers_in_names(["1 star", "2 stars"]), numbers_in_names(["bad", "good"])
        ({1: 0, 2: 1}, {})
    """
    found = [_NUMBER.findall(name) for name in names]
    if not all(len(each) == 1 for each in found):
        return {}
    numbers = {int(each[0]): position for position, each in enumerate(found)}
    return numbers if len(numbers) == len(names) else {}


def are_positions(names: Sequence[str]) -> bool:
    """Return whether the names of the classes are only their numbers, such as "0" and "1".

    Example:
        >>> are_positions(["0", "1"]), are_positions(["1", "2"])
        (True, False)
    """
    return all(name in (str(number), f"LABEL_{number}") for number, name in enumerate(names))
