"""Losses without labels for one call of a transformers model, and for a loss function applied outside of it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from pgb_lightning.calibration.drawn import DRAWN, drawn_classes, random_direction
from pgb_lightning.label_kind import IGNORED, Kind, LossWatcher, SeenFunction, find_kind
from pgb_lightning.model_calls import Call

#: Loss functions that compare outputs with labels of a known kind.
LIKELIHOODS: dict[str, Kind] = {
    "cross_entropy": "classes",
    "nll_loss": "classes",
    "binary_cross_entropy": "labels",
    "binary_cross_entropy_with_logits": "labels",
    "mse_loss": "values",
    "l1_loss": "values",
    "smooth_l1_loss": "values",
    "huber_loss": "values",
}


class UnavailableError(ValueError):
    """Raised if a model does not have what a loss without labels needs."""


def call_likelihood(
    model: PreTrainedModel, call: Call, watcher: LossWatcher, generator: Generator, temperature: float
) -> Tensor:
    """Return the mean over samples of the negative log-likelihood of labels drawn from a call's predictions.

    Args:
        model: The model that was called.
        call: The call, with logits.
        watcher: The loss functions that were applied to the logits; they determine the kind of labels.
        generator: Source of random numbers.
        temperature: Divides the logits.

    Raises:
        UnavailableError: If it is unknown whether the labels are mutually exclusive.
        ValueError: If the loss and ``config.problem_type`` disagree.
    """
    total = call.hidden[-1].new_zeros((), dtype=torch.float32)
    for name, logits in call.logits().items():
        if name != "logits":  # scores of the positions of an answer
            total = total + drawn_classes(_without_padding(logits, call), generator, temperature).sum() / len(logits)
            continue
        kind = find_kind(model, logits, watcher.kind([logits]))
        if kind is None:
            raise UnavailableError(
                f"it is unknown whether the {logits.shape[-1]} labels of {type(model).__name__} exclude each other "
                "(set model.config.problem_type to 'single_label_classification' or 'multi_label_classification')"
            )
        rows = DRAWN[kind](logits, generator, temperature)
        tokens = _token_mask(model, logits, call)
        total = total + (rows if tokens is None else rows[tokens]).sum() / len(logits)
    return total


def seen_likelihood(seen: SeenFunction, generator: Generator, temperature: float) -> Tensor:
    """Return the summed negative log-likelihood of labels drawn from the outputs to which a loss was applied.

    Args:
        seen: A function of :data:`LIKELIHOODS`.
        generator: Source of random numbers.
        temperature: Divides the logits.
    """
    value, target, kind = seen.value, seen.target, LIKELIHOODS[seen.name]
    if kind == "classes" and value.dim() > 2:
        value = value.movedim(1, -1)  # torch has the classes in the second dimension
    if seen.name == "binary_cross_entropy":
        value = value.float().logit(eps=1e-6)
    rows = DRAWN[kind](value, generator, temperature)
    if kind == "classes" and target is not None and target.shape == rows.shape and not target.is_floating_point():
        rows = rows[target != seen.ignored]
    return rows.sum()


def call_direction(model: PreTrainedModel, call: Call, generator: Generator) -> Tensor:
    """Return the mean over samples of v · f, for the outputs f of a call and a random direction v.

    The outputs are the logits if there are any, else the last hidden states; padding is excluded.

    Args:
        model: The model that was called.
        call: The call.
        generator: Source of random numbers.
    """
    total = call.hidden[-1].new_zeros((), dtype=torch.float32)
    for name, logits in call.logits().items():
        products = random_direction(logits, generator)
        tokens = _token_mask(model, logits, call) if name == "logits" else _tokens(call)
        total = total + (products if tokens is None else products[tokens]).sum() / len(logits)
    if not call.logits():
        states = getattr(call.output, "last_hidden_state", None)
        states = call.hidden[-1] if states is None else states
        total = random_direction(states, generator)[_tokens(call)].sum() / len(states)
    return total


def _tokens(call: Call) -> Tensor:
    """Return a mask of the real tokens of a call, (B, S)."""
    return call.token_mask(call.hidden[-1]).bool()


def _without_padding(scores: Tensor, call: Call) -> Tensor:
    """Return the scores of positions, (B, S), with padding excluded."""
    tokens = _tokens(call)
    return scores.masked_fill(~tokens, -torch.inf) if tokens.shape == scores.shape else scores


def _token_mask(model: PreTrainedModel, logits: Tensor, call: Call) -> Tensor | None:
    """Return a mask of the tokens that contribute to the loss, (B, S), if each token has logits; else ``None``.

    Tokens with the label that the loss ignores are masked out.
    """
    tokens = _tokens(call)
    scores_of_tokens = logits.dim() == 2 and logits.shape[-1] != getattr(model.config, "num_labels", None)
    if tokens.shape != logits.shape[:2] or not (logits.dim() > 2 or scores_of_tokens):
        return None
    labels = call.kwargs.get("labels")
    if isinstance(labels, Tensor) and labels.shape == tokens.shape:
        tokens = tokens & (labels != IGNORED)
    return tokens
