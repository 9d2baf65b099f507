"""The nine GLUE tasks: their columns, labels, splits and metrics."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]

#: The dataset on the Hub with all nine tasks, one configuration each.
GLUE_REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True)
class GLUETask:
    """One GLUE task, as in the Hub's ``nyu-mll/glue``.

    Args:
        name: The Hub's configuration name.
        text_columns: One column for single sentences, two for pairs.
        num_labels: Number of classes, or 1 for regression.
        metrics: The paper's metric (Table A2) first, then the other official ones.
        validation_splits: Names of the splits with public labels. Scores are reported on the first.
        test_splits: Names of the splits without public labels (-1 on the Hub).
        class_names: The leaderboard's names of the classes, in the Hub's order. Empty if it expects numbers.
        leaderboard: The leaderboard's file name for each of ``test_splits``, without ``.tsv``.
    """

    name: str
    text_columns: tuple[str, ...]
    num_labels: int = 2
    metrics: tuple[MetricName, ...] = ("accuracy",)
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    class_names: tuple[str, ...] = ()
    leaderboard: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1


_ENTAILMENT = ("entailment", "not_entailment")

#: All tasks by name.
TASKS: dict[str, GLUETask] = {
    task.name: task
    for task in (
        GLUETask("cola", ("sentence",), metrics=("matthews",), leaderboard=("CoLA",)),
        GLUETask("sst2", ("sentence",), leaderboard=("SST-2",)),
        GLUETask("mrpc", ("sentence1", "sentence2"), metrics=("accuracy", "f1"), leaderboard=("MRPC",)),
        GLUETask("qqp", ("question1", "question2"), metrics=("accuracy", "f1"), leaderboard=("QQP",)),
        GLUETask(
            "stsb",
            ("sentence1", "sentence2"),
            num_labels=1,
            metrics=("spearman", "pearson"),
            leaderboard=("STS-B",),
        ),
        GLUETask(
            "mnli",
            ("premise", "hypothesis"),
            num_labels=3,
            validation_splits=("validation_matched", "validation_mismatched"),
            test_splits=("test_matched", "test_mismatched"),
            class_names=("entailment", "neutral", "contradiction"),
            leaderboard=("MNLI-m", "MNLI-mm"),
        ),
        GLUETask("qnli", ("question", "sentence"), class_names=_ENTAILMENT, leaderboard=("QNLI",)),
        GLUETask("rte", ("sentence1", "sentence2"), class_names=_ENTAILMENT, leaderboard=("RTE",)),
        GLUETask("wnli", ("sentence1", "sentence2"), leaderboard=("WNLI",)),
    )
}


def get_task(name: str) -> GLUETask:
    """Return a task by its Hub configuration name.

    Args:
        name: For example ``"sst2"``.

    Raises:
        ValueError: If there is no such task. The message lists all tasks.

    Example:
        >>> get_task("stsb").metrics
        ('spearman', 'pearson')
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not a GLUE task. Choose one of: {', '.join(TASKS)}.")
    return TASKS[name]


def normalize_class_name(name: object) -> str:
    """Return a class name in lowercase without spaces and punctuation, so that spelling variants are equal.

    Symbols, combining marks, the sign of a number and its decimal point are kept, since they distinguish classes.

    Example:
        >>> normalize_class_name("Not-Entailment") == normalize_class_name("not_entailment")
        True
        >>> [normalize_class_name(name) for name in ("C++", "-1", "1.5")]
        ['c++', '-1', '1.5']
    """
    parts = re.split(r"((?<!\w)-(?=\d)|(?<=\d)\.(?=\d))", str(name).casefold())
    return "".join(part if number % 2 else _without_separators(part) for number, part in enumerate(parts))


def _without_separators(text: str) -> str:
    return "".join(char for char in text if char.isalnum() or unicodedata.category(char)[0] in "SM")


def differ_only_in_order(names: Iterable[object], others: Iterable[object]) -> bool:
    """Return whether two lists have the same class names in different orders, ignoring spelling variants.

    Example:
        >>> differ_only_in_order(["entailment", "neutral"], ["Neutral", "Entailment"])
        True
    """
    first = [normalize_class_name(name) for name in names]
    second = [normalize_class_name(name) for name in others]
    return first != second and sorted(first) == sorted(second)
