"""Detect the labels in batches for transformers models, and remove them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

#: Errors of code that reads missing labels.
LOOKUP_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def has_labels(model: PreTrainedModel, batch: Any) -> bool | None:
    """Return whether a batch has labels for a model, or ``None`` if this is unknown.

    It is known if the batch is a mapping that has an argument of the model for labels, or only other arguments of the
    model.
    """
    if not isinstance(batch, Mapping):
        return None
    if any(batch.get(name) is not None for name in label_names(model)):
        return True
    return False if batch.keys() <= signature(model.forward).parameters.keys() else None


def inputs_without_labels(model: PreTrainedModel, batch: Any) -> dict[str, Any]:
    """Return the entries of a batch that are arguments of a model, except labels; empty if there is no input.

    A batch may also be a single tensor of inputs, alone or in a tuple or list.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        [batch] = batch
    if isinstance(batch, Tensor):
        return {model.main_input_name: batch}
    if not isinstance(batch, Mapping) or model.main_input_name not in batch:
        return {}
    names = signature(model.forward).parameters.keys() - label_names(model)
    return {name: value for name, value in batch.items() if name in names}


def label_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the arguments of a model that are labels."""
    known = find_labels(type(model))  # type: ignore[no-untyped-call]
    return {"labels", "label", "start_positions", "end_positions", *known}
