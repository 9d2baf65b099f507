"""Determine whether a model's labels are exclusive classes, from the loss that is computed on its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

#: Exclusive classes, independent labels, or values.
Kind = Literal["classes", "labels", "values"]

#: The kind by the ``problem_type`` of a transformers configuration. A model with labels sets it in its first forward
#: call that gets labels.
PROBLEM_TYPES: dict[str, Kind] = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "values",
}

#: Endings of the names of transformers classes whose logits, (B, C), are always exclusive.
EXCLUSIVE_CLASSES = ("ForMultipleChoice", "ForNextSentencePrediction")

#: Loss functions for one label per sample, in which classes compete.
EXCLUSIVE_LOSSES = {"cross_entropy", "nll_loss", "multi_margin_loss"}

#: Loss functions of independent labels, and of values.
LABEL_LOSSES = {
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
}
VALUE_LOSSES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}

#: Default label of rows and tokens that losses and metrics ignore.
IGNORED = -100

#: Functions with which a user's own loss usually begins.
EXCLUSIVE_ACTIVATIONS = {"softmax", "log_softmax", "logsumexp"}
INDEPENDENT_ACTIVATIONS = {"sigmoid", "logsigmoid", "log_sigmoid"}

#: The functions by kind; losses are more reliable than activations.
_LOSSES: dict[Kind, set[str]] = {"classes": EXCLUSIVE_LOSSES, "labels": LABEL_LOSSES, "values": VALUE_LOSSES}
_ACTIVATIONS: dict[Kind, set[str]] = {"classes": EXCLUSIVE_ACTIVATIONS, "labels": INDEPENDENT_ACTIVATIONS}
_NAMES = {name for kinds in (_LOSSES, _ACTIVATIONS) for names in kinds.values() for name in names}


def find_kind(model: PreTrainedModel, logits: Tensor, seen: Kind | None) -> Kind | None:
    """Return the kind of a model's labels, or ``None`` if it is unknown.

    Args:
        model: The model.
        logits: Its logits, with the labels in the last dimension.
        seen: The kind of labels for which the loss that was computed on the logits is used, if known.

    Raises:
        ValueError: If the loss and ``config.problem_type`` disagree.
    """
    problem_type = getattr(model.config, "problem_type", None)
    stated = PROBLEM_TYPES.get(str(problem_type))
    if stated and seen and stated != seen:
        raise ValueError(
            f"the loss that is computed on the logits does not agree with problem_type={problem_type!r} of "
            f"{type(model).__name__}. Correct model.config.problem_type."
        )
    if stated or seen:
        return stated or seen
    if logits.shape[-1] == 1:
        return "values"
    names = [cls.__name__ for cls in type(model).__mro__]
    if logits.dim() != 2 or any(name.endswith(EXCLUSIVE_CLASSES) for name in names):
        return "classes"  # of tokens or choices
    return None


def resolve_exclusive(model: PreTrainedModel, logits: Tensor, seen: bool | None) -> bool:
    """Return whether the labels of a classifier are mutually exclusive.

    Args:
        model: The model.
        logits: Its logits, with the labels in the last dimension.
        seen: Whether the loss that was computed on the logits is one for exclusive labels, if known.

    Raises:
        ValueError: If this is unknown, or the loss and ``config.problem_type`` disagree.
    """
    problem_type = getattr(model.config, "problem_type", None)
    stated = PROBLEM_TYPES[problem_type] == "classes" if problem_type in PROBLEM_TYPES else None
    remedy = (
        "Set exclusive_labels=True if each sample has one label (compared after a softmax), or exclusive_labels=False "
        "for independent labels or values (compared by their squared error)."
    )
    if None not in (stated, seen) and stated != seen:
        raise ValueError(
            f"exclusive_labels=None, but the loss of training_step does not agree with problem_type={problem_type!r} "
            f"of {type(model).__name__}. {remedy}"
        )
    for kind in (stated, seen):
        if kind is not None:
            return kind
    if find_kind(model, logits, None) is not None:
        return True  # classes of tokens or choices, or a single value, which is compared by its squared error anyway
    raise ValueError(
        f"exclusive_labels=None, but it cannot be detected whether the {logits.shape[-1]} labels of "
        f"{type(model).__name__} exclude each other: it has no problem_type, is called without labels, and the loss of "
        f"training_step is not a known one. {remedy}"
    )


@dataclass
class SeenFunction:
    """A loss or activation function that was applied to a differentiable tensor.

    Args:
        name: The name of the function.
        value: The tensor.
        target: The labels with which the tensor was compared, if any.
        ignored: The label of rows that are ignored.
    """

    name: str
    value: Tensor
    target: Tensor | None
    ignored: int


class LossWatcher(TorchFunctionMode):
    """Record the loss and activation functions that are applied to differentiable tensors while the context is active.

    Example:
        >>> logits = torch.zeros(4, 3, requires_grad=True)
        >>> with LossWatcher() as watcher:
        ...     loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(4, 3))
        >>> watcher.exclusive([logits])
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[SeenFunction] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record the function, and call it."""
        kwargs = kwargs or {}
        value = args[0] if args else kwargs.get("input")
        name = getattr(func, "__name__", "")
        if name in _NAMES and isinstance(value, Tensor) and torch.is_grad_enabled() and value.requires_grad:
            target = args[1] if len(args) > 1 else kwargs.get("target")
            labels = target if isinstance(target, Tensor) else None
            self.seen.append(SeenFunction(name, value, labels, kwargs.get("ignore_index", IGNORED)))
        return func(*args, **kwargs)

    def kind(self, logits: Iterable[Tensor]) -> Kind | None:
        """Return the kind of labels of the loss, or ``None`` if it is unknown or there are several losses.

        Args:
            logits: The logits. Only functions that were applied to the same number of elements, or to rows of the same
                width, are considered.
        """
        kinds = self._kinds(logits)
        return kinds.pop() if len(kinds) == 1 else None

    def exclusive(self, logits: Iterable[Tensor]) -> bool | None:
        """Return whether the loss is one for exclusive classes, or ``None`` if it is unknown or there are several.

        Args:
            logits: As for :meth:`kind`.
        """
        found = {kind == "classes" for kind in self._kinds(logits)}
        return found.pop() if len(found) == 1 else None

    def _kinds(self, logits: Iterable[Tensor]) -> set[Kind]:
        forms = [(each.shape[-1], each.numel(), each.dim()) for each in logits]

        def of_logits(shape: torch.Size) -> bool:
            size = shape.numel()
            return any(size == count or (shape[-1:] == (width,) and len(shape) <= rank) for width, count, rank in forms)

        names = {each.name for each in self.seen if of_logits(each.value.shape)}
        for known in (_LOSSES, _ACTIVATIONS):
            if kinds := {kind for kind, functions in known.items() if names & functions}:
                return kinds
        return set()
