"""Distillation losses: match the outputs and hidden states of the dense model on the same inputs.

For exclusive classes, the loss is the Kullback-Leibler divergence between the distributions of teacher and student,
both softened by a temperature (Hinton, Vinyals and Dean, 2015). For independent labels and regression, it is the mean
squared error of the outputs (Ba and Caruana, 2014), which is the limit of the divergence at high temperatures.
Pruning does not change the hidden size, so the hidden states of each layer are compared directly with those of the same
layer of the teacher (CoFi learns a projection between them). That loss is the squared error, divided by the squared
norm of the teacher's hidden states. Padding is ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgb_lightning.model_calls import Call


def logits_loss(student: Call, teacher: Call, temperature: float, exclusive: bool = True) -> Tensor:
    """Compute the loss between the outputs of two calls.

    Args:
        student: The call of the student.
        teacher: The call of the teacher.
        temperature: Divides the logits before the softmax. The loss is multiplied by its square, so that the scale of
            the gradients does not depend on it.
        exclusive: Whether ``logits`` are those of exclusive classes, which are compared after a softmax. Otherwise they
            are compared by their squared error. Scores of answer positions are always exclusive.

    Returns:
        The loss, averaged over samples (over tokens without padding if each token has logits) and over outputs.

    Example:
        >>> same = Call(output={"logits": torch.tensor([[2.0, 1.0]])})
        >>> float(logits_loss(same, same, temperature=2.0))
        0.0
    """
    losses = []
    for name, target in teacher.logits().items():
        logits = student.logits()[name]
        if name != "logits" and target.dim() == 2:  # answers do not begin or end at padding
            target = target.masked_fill(teacher.token_mask(target) == 0, -torch.inf)
        if (exclusive or name != "logits") and target.shape[-1] > 1:
            log_student = (logits.float() / temperature).log_softmax(-1)
            log_teacher = (target.float() / temperature).log_softmax(-1)
            impossible = log_teacher == -torch.inf  # masked positions, which do not contribute
            difference = (log_teacher - log_student).masked_fill(impossible, 0.0)
            rows = temperature**2 * (log_teacher.exp() * difference).sum(-1)
        else:
            rows = (logits.float() - target.float()).square().mean(-1)
        if rows.dim() == 2:
            rows, tokens = rows.flatten(), teacher.token_mask(rows).flatten()
            losses.append((rows * tokens).sum() / tokens.sum().clamp_min(1))
        else:
            losses.append(rows.mean())
    return torch.stack(losses).mean()


def hidden_loss(student: Call, teacher: Call) -> Tensor:
    """Compute the loss between the hidden states of two calls, layer by layer.

    Args:
        student: The call of the student.
        teacher: The call of the teacher, with the same number of layers and hidden size.

    Returns:
        The squared error without padding, relative to the squared norm of the teacher's hidden states and averaged over
        layers: 0 if the hidden states are equal, 1 if those of the student are zero.
    """
    losses = []
    for layer, (hidden, target) in enumerate(zip(student.hidden, teacher.hidden, strict=True)):
        tokens = teacher.token_mask(target, layer).unsqueeze(-1).float()
        norm = (target.float().square() * tokens).sum()
        losses.append(((hidden.float() - target.float()).square() * tokens).sum() / norm.clamp_min(1e-12))
    return torch.stack(losses).mean()
