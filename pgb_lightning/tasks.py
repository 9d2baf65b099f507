"""The nine GLUE tasks: where their text and labels are, and how each is scored."""

from __future__ import annotations

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
    """

    name: str
    text_columns: tuple[str, ...]
    num_labels: int = 2
    metrics: tuple[MetricName, ...] = ("accuracy",)
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers and not classes."""
        return self.num_labels == 1


TASKS: dict[str, GLUETask] = {
    task.name: task
    for task in (
        GLUETask("cola", ("sentence",), metrics=("matthews",)),
        GLUETask("sst2", ("sentence",)),
        GLUETask("mrpc", ("sentence1", "sentence2"), metrics=("accuracy", "f1")),
        GLUETask("qqp", ("question1", "question2"), metrics=("accuracy", "f1")),
        GLUETask("stsb", ("sentence1", "sentence2"), num_labels=1, metrics=("spearman", "pearson")),
        GLUETask(
            "mnli",
            ("premise", "hypothesis"),
            num_labels=3,
            validation_splits=("validation_matched", "validation_mismatched"),
            test_splits=("test_matched", "test_mismatched"),
        ),
        GLUETask("qnli", ("question", "sentence")),
        GLUETask("rte", ("sentence1", "sentence2")),
        GLUETask("wnli", ("sentence1", "sentence2")),
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
