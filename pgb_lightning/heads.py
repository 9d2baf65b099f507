"""Read from a stored model's configuration what its head predicts, and the names of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoConfig, PretrainedConfig

from pgb_lightning.packaged import explain_model_errors, resolve_model

#: The problem types of texts, with transformers' names.
TextProblem = Literal["single_label_classification", "multi_label_classification", "regression"]
TEXT_PROBLEMS: tuple[TextProblem, ...] = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)

#: The problem types of rows: those of texts, and token classification.
ProblemType = Literal[TextProblem, "token_classification"]
PROBLEM_TYPES: tuple[ProblemType, ...] = (*TEXT_PROBLEMS, "token_classification")


@dataclass(frozen=True)
class Labels:
    """The labels of a model or a table.

    Args:
        problem_type: The kind of labels of a row: one class, multiple classes, a number, or a class for each word.
        num_labels: Number of classes; 1 for numbers.
        names: Names of the classes; empty if only their numbers are known.
    """

    problem_type: ProblemType
    num_labels: int
    names: tuple[str, ...] = ()


def read_head(model_name_or_path: str) -> Labels | None:
    """Return the labels of a model that is fine-tuned for classification or regression, or ``None`` for an encoder.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Raises:
        MisconfigurationException: If the model's configuration cannot be read.

    Example:
        >>> read_head("minilm-l6") is None
        True
    """
    return head_of(read_config(model_name_or_path))


def read_config(model_name_or_path: str, setting: str = "model_name_or_path") -> PretrainedConfig:
    """Read the configuration of a model.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.
        setting: The name of the user's setting, for messages.

    Raises:
        MisconfigurationException: If it cannot be read.
    """
    with explain_model_errors(model_name_or_path, "configuration", setting):
        config: PretrainedConfig = AutoConfig.from_pretrained(resolve_model(model_name_or_path))
    return config


def head_of(config: PretrainedConfig) -> Labels | None:
    """Return the labels of the head that a configuration describes, or ``None`` if there is none.

    Args:
        config: The configuration of a model that was saved.

    Raises:
        MisconfigurationException: If it has an unknown ``problem_type``.
    """
    architecture, count, names = stored_class(config), len(config.id2label or ()), class_names(config)
    if architecture.endswith("ForTokenClassification"):
        return Labels("token_classification", count, names)
    if not architecture.endswith("ForSequenceClassification"):
        return None
    problem: Any = config.problem_type or usual_problem(count)
    if problem not in TEXT_PROBLEMS:
        raise MisconfigurationException(
            f"The model's configuration has problem_type={problem!r}. Use "
            f"{', '.join(map(repr, TEXT_PROBLEMS))}, or remove it from config.json."
        )
    return Labels(problem, count, () if problem == "regression" else names)


def stored_class(config: PretrainedConfig) -> str:
    """Return the name of the class that wrote a configuration; empty if it is unknown."""
    return str((getattr(config, "architectures", None) or [""])[0])


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the classes of a configuration; empty if they are those that transformers assigns by default.

    Example:
        >>> class_names(PretrainedConfig(num_labels=2)), class_names(PretrainedConfig(id2label={0: "no", 1: "yes"}))
        ((), ('no', 'yes'))
    """
    names = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    return () if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def usual_problem(num_labels: int) -> TextProblem:
    """Return transformers' default problem type for a head with ``num_labels`` outputs."""
    return "regression" if num_labels == 1 else "single_label_classification"
