"""The nine GLUE tasks: where their text and labels are, and how each is scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]

GLUE_REPOSITORY = "nyu-mll/glue"
"""The Hub's data set with all nine tasks, one configuration each."""


@dataclass(frozen=True)
class GLUETask:
    """One GLUE task, in the terms of the Hub's `nyu-mll/glue`.

    Args:
        name: The Hub's configuration name.
        text_columns: One column for a single sentence, two for a pair.
        num_labels: Number of classes, or 1 for regression.
        metrics: The paper's metric (its Table A2) first, then the benchmark's further official ones.
        validation_splits: Names of the splits with public labels; the first is the one to report.
        test_splits: Names of the splits without public labels (the Hub writes -1).
        class_names: What the leaderboard calls the classes, in the Hub's order; empty where it takes numbers.
        leaderboard: What the leaderboard calls a test split's file (without .tsv), one for each of `test_splits`.
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
        """Whether labels are numbers and not classes."""
        return self.num_labels == 1


_TWO_WAY = ("entailment", "not_entailment")

TASKS: dict[str, GLUETask] = {
    task.name: task
    for task in (
        GLUETask("cola", ("sentence",), metrics=("matthews",), leaderboard=("CoLA",)),
        GLUETask("sst2", ("sentence",), leaderboard=("SST-2",)),
        GLUETask("mrpc", ("sentence1", "sentence2"), metrics=("accuracy", "f1"), leaderboard=("MRPC",)),
        GLUETask("qqp", ("question1", "question2"), metrics=("accuracy", "f1"), leaderboard=("QQP",)),
        GLUETask(
            *("stsb", ("sentence1", "sentence2"), 1),
            metrics=("spearman", "pearson"),
            leaderboard=("STS-B",),
        ),
        GLUETask(
            *("mnli", ("premise", "hypothesis"), 3),
            validation_splits=("validation_matched", "validation_mismatched"),
            test_splits=("test_matched", "test_mismatched"),
            class_names=("entailment", "neutral", "contradiction"),
            leaderboard=("MNLI-m", "MNLI-mm"),
        ),
        GLUETask("qnli", ("question", "sentence"), class_names=_TWO_WAY, leaderboard=("QNLI",)),
        GLUETask("rte", ("sentence1", "sentence2"), class_names=_TWO_WAY, leaderboard=("RTE",)),
        GLUETask("wnli", ("sentence1", "sentence2"), leaderboard=("WNLI",)),
    )
}


def get_task(name: str) -> GLUETask:
    """Look a task up by its Hub configuration name.

    Args:
        name: For example "sst2".

    Returns:
        The task's row of the table.

    Raises:
        ValueError: If there is no such task; the message lists the known ones.

    Example:
        >>> get_task("stsb").metrics
        ('spearman', 'pearson')
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not a GLUE task; choose one of: {', '.join(TASKS)}.")
    return TASKS[name]


def plain_name(name: object) -> str:
    """Write a class's name so that spelling variants agree: small letters and digits only.

    Example:
        >>> plain_name("Not-Entailment") == plain_name("not_entailment")
        True
    """
    return "".join(filter(str.isalnum, str(name).casefold()))


def are_reordered(names: Iterable[object], others: Iterable[object]) -> bool:
    """Tell whether some classes are the same as others but stand in another order, whatever their spelling.

    Example:
        >>> are_reordered(["entailment", "neutral"], ["Neutral", "Entailment"])
        True
    """
    first, second = ([plain_name(name) for name in one] for one in (names, others))
    return first != second and sorted(first) == sorted(second)
