"""Check on the first calibration batch that a family runs layers as the model does, as compensation requires."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pgb_lightning.calibration.hooks import EncoderCalls
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS

#: Largest accepted relative difference of a layer's outputs, in single precision and in lower precisions. Rounding
#: causes at most a tenth of it.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION = 0.1

_REMEDY = (
    "Correct attend, feed, arguments or between of the Family (docs/extending.md), or remove hooks and other changes "
    "of the layer that the Family does not describe."
)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors, divided by the norm of the expected one."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-12))


def rounding_tolerance(dtype: torch.dtype, uses_autocast: bool = False) -> float:
    """Return the largest relative difference that rounding may explain."""
    return _LOW_PRECISION if uses_autocast else _TOLERANCES.get(dtype, _LOW_PRECISION)


@dataclass
class Outputs:
    """The outputs of a model's layers in the first call of the encoder in a batch.

    Args:
        states: The hidden states after each run of a layer, (B, S, d).
        uses_autocast: Whether the model ran under autocast.
    """

    states: list[Tensor] = field(default_factory=list)
    uses_autocast: bool = False


@contextmanager
def layer_outputs(encoder: Encoder, calls: EncoderCalls) -> Iterator[Outputs]:
    """Record the outputs of the layers in the first of the encoder's calls.

    Args:
        encoder: The dense encoder.
        calls: The calls, to which calibration hooks add before a layer runs.
    """
    found = Outputs()

    def record(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled() and len(calls) == 1 and not calls.in_backward:
            states = output[0] if isinstance(output, tuple) else output
            found.states.append(states.detach())
            found.uses_autocast |= torch.is_autocast_enabled(states.device.type)

    handles = [layer.register_forward_hook(record) for layer in encoder.layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def why_not_same(
    encoder: Encoder, hidden: Tensor, tokens: Tensor, arguments: Sequence[dict[str, Any]], found: Outputs, mask: Tensor
) -> str | None:
    """Return how the family's outputs differ from those of the model's layers, or ``None`` if they are the same.

    Args:
        encoder: The dense encoder.
        hidden: The first layer's input, (B, S, d), as it is stored for compensation: padding may be cut off.
        tokens: True at its real tokens, (B, S).
        arguments: The stored arguments of each run of a layer.
        found: The outputs of the model's layers.
        mask: True at the real tokens of these outputs.
    """
    device = encoder.model.device
    first = states = hidden.to(device)
    tokens = tokens.to(device)
    tolerance = rounding_tolerance(states.dtype, found.uses_autocast)
    if len(found.states) != len(encoder.order):
        return (
            f"The layers of the encoder at {encoder.where} do not run in the order {list(encoder.order)} of the Family "
            f"of {encoder.model_type!r}. Correct the field order of the Family (docs/extending.md)."
        )
    for step, (number, given, output) in enumerate(zip(encoder.order, arguments, found.states, strict=True)):
        where = f"Layer {number} of the encoder at {encoder.where}"
        try:
            for sublayer in SUBLAYERS:
                states = encoder.run(encoder.layers[number], sublayer, states, given)
            difference = relative_difference(states[tokens], output[mask.to(device)])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"{where} cannot be run as described by the Family of {encoder.model_type!r}: {error}. {_REMEDY}"
        if not difference <= tolerance:
            return (
                f"{where} does not return the hidden states that the Family of {encoder.model_type!r} computes: they "
                f"differ by {difference:.2%}. {_REMEDY}"
            )
        states = encoder.pass_on(step, first, states, tokens)
    return None
