"""Run ``training_step`` on batches that may have no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedModel

from pgb_lightning.batch_labels import LOOKUP_ERRORS, has_labels, inputs_without_labels
from pgb_lightning.callbacks.wrapped_step import Step
from pgb_lightning.model_calls import Call


class LabelFreeStep:
    """Run a module's ``training_step``, whose loss is optional if ``task_weight`` is 0.

    Args:
        name: Name of the module's class, for messages.
        task_weight: Weight of the loss that the step returns. If it is 0, the step may fail because labels are missing,
            or return no loss.
    """

    def __init__(self, name: str, task_weight: float) -> None:
        self.name = name
        self.task_weight = task_weight
        self._failure: Exception | None = None
        self._told = False

    def run(self, step: Step, model: PreTrainedModel, calls: Sequence[Call]) -> Any:
        """Run a step and return its output, or ``None`` if it fails because labels are missing.

        If it fails before it calls the model, the model is called with the batch.

        Args:
            step: The step with its arguments.
            model: The model that it calls.
            calls: The calls of the model so far.
        """
        self._failure = None
        try:
            return step()
        except LOOKUP_ERRORS as error:
            labeled = has_labels(model, _batch_of(step))
            if self.task_weight and labeled is False:
                raise self._missing() from error
            if self.task_weight or labeled:
                raise
            if not calls and (inputs := inputs_without_labels(model, _batch_of(step))):
                model(**inputs)
            if not calls:
                raise
            self._failure = error
            return None

    def goes_without(self, step: Step, model: PreTrainedModel, was_trained: bool) -> bool:
        """Return whether to train on a batch although the last step returned no loss.

        Args:
            step: The step with its arguments.
            model: The model that it calls.
            was_trained: Whether the model was called with gradients enabled.

        Raises:
            MisconfigurationException: If the loss is needed, and the batch has no labels.
        """
        labeled = has_labels(model, _batch_of(step))
        if self.task_weight and labeled is False and was_trained:
            raise self._missing()
        if self.task_weight or labeled or not was_trained:
            return False
        if not self._told:
            if labeled is False:
                rank_zero_info(
                    "Distillation: batches without labels are trained on the teacher's answers alone (task_weight=0)."
                )
            else:
                failure = self._failure
                reason = "returned no loss" if failure is None else f"failed with {type(failure).__name__}: {failure}"
                rank_zero_warn(
                    f"Distillation: {self.name}.training_step {reason.rstrip('.')}. With task_weight=0 its loss is not "
                    "needed: the batch is trained on the teacher's answers."
                )
            self._told = True
        return True

    def _missing(self) -> MisconfigurationException:
        return MisconfigurationException(
            f"Distillation: task_weight={self.task_weight} needs the loss of {self.name}.training_step, but the batch "
            "has no labels. Set task_weight=0 to learn from the teacher only, or use rows with labels."
        )


def _batch_of(step: Step) -> Any:
    """Return the batch in the arguments of a step."""
    return next(iter((*step.args, *step.keywords.values())), None)
