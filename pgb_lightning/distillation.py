"""Learn from the dense model: its outputs and its hidden states, on the very inputs that the student is given.

The loss for class scores is the Kullback-Leibler divergence from the teacher's, both softened by a temperature (Hinton,
Vinyals, Dean 2015); numbers and labels that do not exclude each other are compared as they are, by their squares.
Since pruning leaves the hidden size alone, each layer's hidden states are compared with those of the same layer of the
teacher (as CoFi does, but without a learned map between them), in squares, as a share of the teacher's own; padding
does not count.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder

#: What transformers calls the outputs that a loss is made of.
SCORES = ("logits", "start_logits", "end_logits")


@dataclass
class Call:
    """One run of a transformers model.

    Args:
        args: What it was given by position.
        kwargs: What it was given by name.
        output: What it returned.
        hidden: The hidden states after each layer, (B, S, d).
        mask: Which tokens are real, (B, S), if it was told.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    hidden: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = None

    def scores(self) -> dict[str, Tensor]:
        """Return the outputs that can be compared; none if the model has no head."""
        named = self.output if isinstance(self.output, Mapping) else {}
        return {name: named[name] for name in SCORES if name in named}

    def tokens(self, like: Tensor) -> Tensor:
        """Return which tokens are real, as (B, S) ones and zeros of another tensor's type."""
        if self.mask is None or self.mask.shape != like.shape[:2]:  # none, or one of the user's own form
            return torch.ones(like.shape[:2], dtype=like.dtype, device=like.device)
        return self.mask.to(like)


@contextmanager
def listening(model: PreTrainedModel, encoder: str | None = None) -> Iterator[list[Call]]:
    """List the runs of a model that are made meanwhile.

    Args:
        model: A transformers model that is, or wraps, an encoder with a known map.
        encoder: The encoder's attribute path in it, where there are several.
    """
    calls: list[Call] = []
    current = Call()
    found = find_encoder(model, encoder)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal current
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        current = Call(mask=bound.arguments.get("attention_mask"))

    def leave_layer(module: nn.Module, args: Any, output: Any) -> None:
        current.hidden.append(output[0] if isinstance(output, tuple) else output)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        current.args, current.kwargs, current.output = args, kwargs, output
        calls.append(current)

    handles = [
        found.model.register_forward_pre_hook(enter, with_kwargs=True),
        *(layer.register_forward_hook(leave_layer) for layer in found.layers),
        model.register_forward_hook(leave, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Teacher:
    """A dense model that answers what a student is asked; it never learns, and belongs to no module.

    A resumed run knows its teacher again by :attr:`fingerprint`, sixteen hexadecimal digits of all its weights.

    Args:
        model: The model; it is put in eval mode and frozen.
        encoder: The encoder's attribute path in it, where there are several.
    """

    def __init__(self, model: PreTrainedModel, encoder: str | None = None) -> None:
        model.train(False).requires_grad_(False)
        self.model = model
        self.encoder = encoder
        self.fingerprint = _hash(model)

    @torch.no_grad()
    def answer(self, call: Call) -> Call:
        """Run on the same inputs."""
        with listening(self.model, self.encoder) as calls:
            self.model(*call.args, **call.kwargs)
        return calls[0]


def scores_loss(student: Call, teacher: Call, temperature: float, exclusive: bool = True) -> Tensor:
    """Compare the outputs of two runs.

    Args:
        student: The run that learns.
        teacher: The run that it learns from.
        temperature: Divides the scores before the softmax; the loss is multiplied by its square, which keeps its
            gradient's size.
        exclusive: Whether scores compete, as those of classes do, and positions of an answer; numbers do not.

    Returns:
        The loss, a mean over samples (over real tokens, where each token has scores) and over outputs.

    Example:
        >>> same = Call(output={"logits": torch.tensor([[2.0, 1.0]])})
        >>> float(scores_loss(same, same, temperature=2.0))
        0.0
    """
    losses = []
    for name, wanted in teacher.scores().items():
        given = student.scores()[name]
        if exclusive and wanted.shape[-1] > 1:
            log_given, log_wanted = ((scores.float() / temperature).log_softmax(-1) for scores in (given, wanted))
            rows = temperature**2 * (log_wanted.exp() * (log_wanted - log_given)).sum(-1)
        else:
            rows = (given.float() - wanted.float()).square().mean(-1)
        if rows.dim() == 2:
            rows, tokens = rows.flatten(), teacher.tokens(rows).flatten()
            losses.append((rows * tokens).sum() / tokens.sum().clamp_min(1))
        else:
            losses.append(rows.mean())
    return torch.stack(losses).mean()


def hidden_loss(student: Call, teacher: Call) -> Tensor:
    """Compare hidden states layer by layer.

    Args:
        student: The run that learns.
        teacher: The run that it learns from, with as many layers of the same width.

    Returns:
        Squared distance over real tokens as a share of the teacher's squares, a mean over layers: 0 if they agree, 1
        if the student's are zero.
    """
    losses = []
    for given, wanted in zip(student.hidden, teacher.hidden, strict=True):
        tokens = teacher.tokens(wanted).unsqueeze(-1).float()
        power = (wanted.float().square() * tokens).sum()
        losses.append(((given.float() - wanted.float()).square() * tokens).sum() / power.clamp_min(1e-12))
    return torch.stack(losses).mean()


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
