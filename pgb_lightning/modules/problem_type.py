"""Determine what a text classifier predicts (one class, multiple labels or a number), from settings and the model."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import PretrainedConfig

from pgb_lightning.glue_tasks import GLUETask
from pgb_lightning.heads import TEXT_PROBLEMS, TextProblem, usual_problem


def check_given(task: GLUETask | None, num_labels: int | None, problem_type: str | None) -> None:
    """Check settings that a user gave, before any model is read.

    Args:
        task: The GLUE task, if given.
        num_labels: The number of labels, if given.
        problem_type: The problem type, if given.

    Raises:
        MisconfigurationException: If a setting is out of range, or two settings contradict each other.
    """
    if num_labels is not None and num_labels < 1:
        raise MisconfigurationException(
            f"num_labels={num_labels} is out of range. Use the number of classes, or 1 for regression."
        )
    if problem_type not in (None, *TEXT_PROBLEMS):
        allowed = ", ".join(map(repr, TEXT_PROBLEMS))
        raise MisconfigurationException(f"problem_type={problem_type!r} is unknown. Use {allowed}, or None.")
    if task is not None:
        own = usual_problem(task.num_labels)
        if num_labels not in (None, task.num_labels):
            raise MisconfigurationException(
                f"num_labels={num_labels} contradicts task={task.name!r}, which has {task.num_labels}. Omit num_labels."
            )
        if problem_type not in (None, own):
            raise MisconfigurationException(
                f"problem_type={problem_type!r} contradicts task={task.name!r}, which is {own!r}. Omit problem_type."
            )
    if num_labels is not None and problem_type is not None:
        _check_fit(num_labels, problem_type, "")


def resolve(
    task: GLUETask | None,
    num_labels: int | None,
    problem_type: TextProblem | None,
    fine_tuned: PretrainedConfig | None,
    name: str,
) -> tuple[int, TextProblem]:
    """Return the number of labels and the problem type.

    Settings that are not given are taken from a fine-tuned model. Without one, the defaults are two classes, or one
    number in regression. A fine-tuned model without ``problem_type`` predicts one class for each text, or a number if
    it has one output, as in transformers.

    Args:
        task: The GLUE task, if given.
        num_labels: The number of labels, if given.
        problem_type: The problem type, if given.
        fine_tuned: The configuration of a fine-tuned model for sequence classification, if there is one.
        name: The name of the model, for messages.

    Raises:
        MisconfigurationException: If the number of labels is unknown, or does not fit the problem type.

    Example:
        >>> resolve(None, None, None, None, "bert-base-uncased")
        (2, 'single_label_classification')
        >>> resolve(None, None, None, PretrainedConfig(num_labels=1), "my-reranker")
        (1, 'regression')
    """
    source = ""
    if task is not None:
        num_labels = task.num_labels
    elif num_labels is None and fine_tuned is not None:
        num_labels = len(fine_tuned.id2label or ())
        problem_type = problem_type or fine_tuned.problem_type
        source = f" of model_name_or_path={name!r}"
    elif num_labels is None and problem_type == "multi_label_classification":
        raise MisconfigurationException(
            f"num_labels=None, but problem_type={problem_type!r} needs the number of labels, because "
            f"model_name_or_path={name!r} has no head. Set num_labels to that of the data."
        )
    elif num_labels is None:
        num_labels = 1 if problem_type == "regression" else 2
    problem = problem_type or usual_problem(num_labels)
    _check_fit(num_labels, problem, source)
    return num_labels, problem


def check_stored(stored: str | None, num_labels: int, problem_type: TextProblem, source: str) -> None:
    """Check that a stored head was trained for the same problem type.

    Args:
        stored: The ``problem_type`` of the configuration that was stored with the head.
        num_labels: The number of labels of the module.
        problem_type: The problem type of the module.
        source: The setting that names the head, with its value.

    Raises:
        MisconfigurationException: If it was trained for another problem type.
    """
    if stored not in (None, problem_type):
        raise MisconfigurationException(
            f"{source} has problem_type={stored!r}, but TextClassification with num_labels={num_labels} "
            f"has {problem_type!r}. Set problem_type={stored!r} (with several numbers for each text, use "
            "a LightningModule of your own with PGBCallback), or pass an encoder without a head."
        )


def _check_fit(num_labels: int, problem_type: str, source: str) -> None:
    """Check that regression has one label, and that otherwise there are several."""
    if (num_labels == 1) != (problem_type == "regression"):
        needed = "num_labels=1" if problem_type == "regression" else "num_labels=2 or more"
        raise MisconfigurationException(
            f"num_labels={num_labels}{source} does not fit problem_type={problem_type!r}, which needs {needed}. "
            "Change one of the two; a model with one output is trained with problem_type='regression'."
        )
