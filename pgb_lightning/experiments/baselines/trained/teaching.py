"""The dense model as the teacher of the methods that learn from it."""

from __future__ import annotations

import copy

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.distillation import Teacher, logits_loss
from pgb_lightning.model_calls import Call


def teacher_of(model: PreTrainedModel) -> Teacher:
    """Return a frozen copy of a model."""
    return Teacher(copy.deepcopy(model))


def output_loss(student: Call, teacher: Call, temperature: float, model: PreTrainedModel) -> Tensor:
    """Return the loss between the outputs of a student and its teacher.

    Args:
        student: The call of the student.
        teacher: The call of the teacher.
        temperature: Temperature that softens class scores.
        model: The student, whose configuration determines whether classes are mutually exclusive.

    Raises:
        MisconfigurationException: If the model has no outputs that can be compared.
    """
    if not teacher.logits():
        raise MisconfigurationException(
            f"distillation=True needs a model with a head, but {type(model).__name__} returns no logits. Use "
            "distillation=False."
        )
    exclusive = getattr(model.config, "problem_type", None) != "multi_label_classification"
    return logits_loss(student, teacher, temperature, exclusive)
