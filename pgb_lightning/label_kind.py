"""Find out whether the labels of a classifier exclude each other, from the loss that is computed on its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

#: Whether labels exclude each other, by the ``problem_type`` of a transformers configuration. A model with labels sets
#: it in its first forward call that gets labels.
PROBLEM_TYPES = {"single_label_classification": True, "multi_label_classification": False, "regression": False}

#: Endings of the names of transformers classes whose logits, (B, C), are always exclusive.
EXCLUSIVE_CLASSES = ("ForMultipleChoice", "ForNextSentencePrediction")

#: Loss functions of one label per sample, which compare classes with each other.
EXCLUSIVE_LOSSES = {"cross_entropy", "nll_loss", "multi_margin_loss"}

#: Loss functions of independent labels or of values.
INDEPENDENT_LOSSES = {
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
}

#: Functions that a user's own loss begins with.
EXCLUSIVE_ACTIVATIONS = {"softmax", "log_softmax", "logsumexp"}
INDEPENDENT_ACTIVATIONS = {"sigmoid", "logsigmoid", "log_sigmoid"}


def resolve_exclusive(model: PreTrainedModel, logits: Tensor, seen: bool | None) -> bool:
    """Return whether the labels of a classifier exclude each other.

    Args:
        model: The model.
        logits: Its logits, with the labels in the last dimension.
        seen: Whether the loss that was computed on the logits takes labels as exclusive, if this is known.

    Raises:
        ValueError: If this is unknown, or the loss and ``config.problem_type`` disagree.
    """
    problem_type = getattr(model.config, "problem_type", None)
    stated = PROBLEM_TYPES.get(str(problem_type))
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
    names = [cls.__name__ for cls in type(model).__mro__]
    if logits.dim() != 2 or logits.shape[-1] == 1 or any(name.endswith(EXCLUSIVE_CLASSES) for name in names):
        return True  # classes of tokens or choices, or a single value, which is compared by its squared error anyway
    raise ValueError(
        f"exclusive_labels=None, but it cannot be detected whether the {logits.shape[-1]} labels of "
        f"{type(model).__name__} exclude each other: it has no problem_type, is called without labels, and the loss of "
        f"training_step is not a known one. {remedy}"
    )


class LossWatcher(TorchFunctionMode):
    """Note the loss and activation functions that are applied to differentiable tensors while the context is active.

    Example:
        >>> logits = torch.zeros(4, 3, requires_grad=True)
        >>> with LossWatcher() as watcher:
        ...     loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(4, 3))
        >>> watcher.exclusive([logits])
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[str, torch.Size]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the function, and call it."""
        kwargs = kwargs or {}
        value = args[0] if args else kwargs.get("input")
        name = getattr(func, "__name__", "")
        if name in _NAMES and isinstance(value, Tensor) and torch.is_grad_enabled() and value.requires_grad:
            self._seen.append((name, value.shape))
        return func(*args, **kwargs)

    def exclusive(self, logits: Iterable[Tensor]) -> bool | None:
        """Return whether the loss takes classes as exclusive, or ``None`` if it is unknown or there are several losses.

        Args:
            logits: The logits. Functions count that were applied to as many elements, or to rows of the same width.
        """
        forms = [(each.shape[-1], each.numel(), each.dim()) for each in logits]

        def of_logits(shape: torch.Size) -> bool:
            size = shape.numel()
            return any(size == count or (shape[-1:] == (width,) and len(shape) <= rank) for width, count, rank in forms)

        names = {name for name, shape in self._seen if of_logits(shape)}
        for exclusive, independent in (
            (EXCLUSIVE_LOSSES, INDEPENDENT_LOSSES),
            (EXCLUSIVE_ACTIVATIONS, INDEPENDENT_ACTIVATIONS),
        ):
            if kinds := {kind for kind, known in ((True, exclusive), (False, independent)) if names & known}:
                return kinds.pop() if len(kinds) == 1 else None
        return None


_NAMES = EXCLUSIVE_LOSSES | INDEPENDENT_LOSSES | EXCLUSIVE_ACTIVATIONS | INDEPENDENT_ACTIVATIONS
