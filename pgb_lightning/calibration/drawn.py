"""Losses without labels, whose gradients have the Fisher information as their second moment.

The empirical Fisher information consists of gradients of the loss with the data's labels. The Fisher information itself
consists of gradients of the negative log-likelihood of labels drawn from the model's own predictions (Kunstner, Hennig
and Balles, 2019). The gradients of v · f(x), where f is an output and v ~ N(0, I) a random direction, have JᵀJ as their
second moment, where J is the Jacobian of f: the curvature of half the squared distance between outputs.

Random numbers come from a generator on the CPU, so they do not depend on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from pgb_lightning.label_kind import Kind


def make_generator(seed: int, batch: int) -> Generator:
    """Return a generator whose numbers depend only on a seed and the number of a batch.

    Example:
        >>> first, same, other = (torch.rand(1, generator=make_generator(0, batch)) for batch in (3, 3, 4))
        >>> bool(first == same), bool(first == other)
        (True, False)
    """
    # Seeds are mixed: generators of torch with seeds that differ by one start with different numbers.
    return torch.Generator().manual_seed((seed * 1_000_003 + batch) % 2**63)


def drawn_classes(logits: Tensor, generator: Generator, temperature: float = 1.0) -> Tensor:
    """Compute the negative log-likelihood of classes drawn from the predictions.

    Args:
        logits: Scores of exclusive classes, (..., C). Minus infinity excludes a class.
        generator: Source of random numbers, on the CPU.
        temperature: Divides the logits.

    Returns:
        The negative log-likelihood of each row, (...).

    Example:
        >>> drawn_classes(torch.tensor([[0.0, -torch.inf]]), make_generator(0, 0)).tolist()
        [-0.0]
    """
    log_probabilities = (logits.float() / temperature).log_softmax(-1)
    with torch.no_grad():
        cumulative = log_probabilities.double().exp().cumsum(-1)
        position = _uniform(logits.shape[:-1], generator, logits).unsqueeze(-1) * cumulative[..., -1:]
        drawn = (cumulative <= position).sum(-1, keepdim=True)  # the first class whose cumulative probability is larger
    return -log_probabilities.gather(-1, drawn).squeeze(-1)


def drawn_labels(logits: Tensor, generator: Generator, temperature: float = 1.0) -> Tensor:
    """Compute the negative log-likelihood of independent labels, 0 or 1, drawn from the predictions.

    Args:
        logits: Scores of independent labels, (...).
        generator: Source of random numbers, on the CPU.
        temperature: Divides the logits.

    Returns:
        The negative log-likelihood of each label, (...).
    """
    scores = logits.float() / temperature
    drawn = _uniform(logits.shape, generator, logits) < scores.detach().sigmoid()
    return functional.binary_cross_entropy_with_logits(scores, drawn.float(), reduction="none")


def drawn_values(values: Tensor, generator: Generator, temperature: float = 1.0) -> Tensor:
    """Compute the negative log-likelihood, without its constant, of values drawn from N(f, T) around the predictions f.

    Args:
        values: The predicted values f, (...).
        generator: Source of random numbers, on the CPU.
        temperature: T, the variance. It only scales the gradients.

    Returns:
        The negative log-likelihood of each value, (...).
    """
    noise = _normal(values.shape, generator, values)
    drawn = values.detach().float() + temperature**0.5 * noise
    squares: Tensor = (values.float() - drawn).square()
    return squares / (2 * temperature)


def random_direction(outputs: Tensor, generator: Generator) -> Tensor:
    """Compute the terms of v · f for a random direction v ~ N(0, I).

    Args:
        outputs: The outputs f, (...).
        generator: Source of random numbers, on the CPU.

    Returns:
        The products of outputs and directions, (...).
    """
    return outputs.float() * _normal(outputs.shape, generator, outputs)


#: The function that draws labels, by the kind of labels.
DRAWN: dict[Kind, Callable[[Tensor, Generator, float], Tensor]] = {
    "classes": drawn_classes,
    "labels": drawn_labels,
    "values": drawn_values,
}


def _uniform(shape: torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Return uniform random numbers in [0, 1), on the device of ``like``."""
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device).to(like.device)


def _normal(shape: torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Return random numbers from N(0, 1), on the device of ``like``."""
    # The generator's device is named, since it may differ from that of torch.set_default_device.
    return torch.randn(shape, generator=generator, device=generator.device).to(like.device)
