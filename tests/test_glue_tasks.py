"""The table of GLUE tasks."""

from __future__ import annotations

import dataclasses

import pytest

from pgb_lightning.glue_tasks import TASKS, get_task

PAIR = ("sentence1", "sentence2")


@pytest.mark.parametrize(
    ("name", "columns", "labels", "metrics"),
    [
        ("cola", ("sentence",), 2, ("matthews",)),
        ("sst2", ("sentence",), 2, ("accuracy",)),
        ("mrpc", PAIR, 2, ("accuracy", "f1")),
        ("qqp", ("question1", "question2"), 2, ("accuracy", "f1")),
        ("stsb", PAIR, 1, ("spearman", "pearson")),
        ("mnli", ("premise", "hypothesis"), 3, ("accuracy",)),
        ("qnli", ("question", "sentence"), 2, ("accuracy",)),
        ("rte", PAIR, 2, ("accuracy",)),
        ("wnli", PAIR, 2, ("accuracy",)),
    ],
)
def test_columns_labels_and_metrics_of_a_task(
    name: str, columns: tuple[str, ...], labels: int, metrics: tuple[str, ...]
) -> None:
    task = get_task(name)
    assert (task.text_columns, task.num_labels, task.metrics) == (columns, labels, metrics)
    assert task.is_regression == (name == "stsb")


def test_nine_tasks_have_their_own_names() -> None:
    assert len(TASKS) == 9
    assert all(task.name == name for name, task in TASKS.items())


def test_only_mnli_has_two_validation_splits() -> None:
    assert get_task("mnli").validation_splits == ("validation_matched", "validation_mismatched")
    assert get_task("mnli").test_splits == ("test_matched", "test_mismatched")
    assert {task.validation_splits for task in TASKS.values() if task.name != "mnli"} == {("validation",)}


def test_a_task_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_task("sst2").num_labels = 3  # type: ignore[misc]


def test_the_error_for_an_unknown_task_lists_all_tasks() -> None:
    with pytest.raises(ValueError, match=r"task='sst-2'.*cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli"):
        get_task("sst-2")
