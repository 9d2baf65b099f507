"""Heads, neurons and sublayers of any family: masks on them, a choice within a budget, and their removal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgb_lightning.cost import dense_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer, sublayer_of
from pgb_lightning.experiments.baselines.kwon import Kept, make_mask_plan
from pgb_lightning.surgery.apply import apply_plan

#: A sublayer of a layer: (layer index, name).
Place = tuple[int, Sublayer]


class Mask(NamedTuple):
    """The masks of one sublayer.

    Args:
        units: Factor of each head or neuron, (U,), or (B, U) if it depends on the sample; ``None`` for no mask.
        output: Factor of the sublayer's output, including its bias, (); ``None`` for no mask.
    """

    units: Tensor | None = None
    output: Tensor | None = None


def places(encoder: Encoder) -> list[Place]:
    """Return all sublayers."""
    return [(layer, sublayer) for layer in range(encoder.num_layers) for sublayer in SUBLAYERS]


def closing(encoder: Encoder, place: Place) -> nn.Linear:
    """Return the last matrix of a sublayer, which reads the heads or neurons."""
    found = encoder.matrix(place[0], encoder.sublayers[place[1]][-1])
    assert isinstance(found, nn.Linear)
    return found


def num_units(encoder: Encoder, sublayer: Sublayer) -> int:
    """Return the number of neurons, or of heads; query heads that share keys and values are one unit."""
    return encoder.inner_size(sublayer) // (encoder.head_group if sublayer == "attention" else 1)


def sublayer_weights(encoder: Encoder, sublayer: Sublayer) -> int:
    """Return the number of weights of a dense sublayer's matrices."""
    sizes = (encoder.matrix_size(kind, encoder.inner_size(sublayer)) for kind in encoder.sublayers[sublayer])
    return sum(rows * columns for rows, columns in sizes)


def unit_sums(encoder: Encoder, values: Callable[[nn.Linear], Tensor]) -> dict[Place, Tensor]:
    """Sum values of single weights over the weights of each head and neuron.

    Args:
        encoder: A dense encoder.
        values: Returns a value of each weight of a linear layer, (N, M).

    Returns:
        The sum for each unit, (U,), over all matrices of its sublayer.
    """
    sums = {place: torch.zeros((), device=encoder.model.device) for place in places(encoder)}
    for linear, matrices in encoder.hook_points():
        found = values(linear)
        for (layer, kind), columns in matrices.items():
            sublayer = sublayer_of(kind)
            part = found if columns is None else found[columns]
            of_units = part.T if kind == encoder.sublayers[sublayer][-1] else part
            sums[layer, sublayer] = sums[layer, sublayer] + of_units.reshape(num_units(encoder, sublayer), -1).sum(1)
    return sums


def attach_masks(encoder: Encoder, mask_of: Callable[[Place], Mask]) -> list[RemovableHandle]:
    """Multiply heads, neurons and outputs of sublayers by masks, in every call until the handles are removed.

    Args:
        encoder: A dense encoder.
        mask_of: Called for each sublayer in each forward pass.
    """

    def before(place: Place) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        size = encoder.head_group if place[1] == "attention" else 1

        def multiply(module: nn.Module, args: tuple[Any, ...]) -> Any:
            units = mask_of(place).units
            if units is None:
                return None
            factors = units.repeat_interleave(size, -1).to(args[0].dtype)
            return (args[0] * (factors if factors.dim() == 1 else factors.unsqueeze(1)), *args[1:])

        return multiply

    def after(place: Place) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def multiply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            factor = mask_of(place).output
            return output if factor is None else output * factor.to(output.dtype)

        return multiply

    handles: list[RemovableHandle] = []
    for place in places(encoder):
        linear = closing(encoder, place)
        handles += [linear.register_forward_pre_hook(before(place)), linear.register_forward_hook(after(place))]
    return handles


def choose_units(encoder: Encoder, scores: Mapping[Place, Tensor], ratio: float) -> Kept:
    """Keep the heads and neurons with the highest scores, as many as the budget permits.

    Units are chosen in descending order of their scores; those that no longer fit are skipped.

    Args:
        encoder: A dense encoder.
        scores: A score for each unit of each sublayer, (U,), or one for all units of it together, (1,).
        ratio: Fraction of the encoder's weights to remove.

    Returns:
        The units to keep, by sublayer.
    """
    costs: list[int] = []
    for (_, sublayer), score in scores.items():
        costs += [sublayer_weights(encoder, sublayer) // len(score)] * len(score)
    room = (1 - ratio) * dense_cost(encoder).parameters
    flat = torch.cat([score.detach().double().cpu() for score in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    for unit in flat.argsort(descending=True, stable=True).tolist():
        if costs[unit] <= room:
            room -= costs[unit]
            chosen[unit] = True
    kept: Kept = {}
    parts = torch.split_with_sizes(chosen, [len(score) for score in scores.values()])
    for place, part in zip(scores, parts, strict=True):
        count = num_units(encoder, place[1])
        kept[place] = (part.expand(count) if len(part) == 1 else part).nonzero().flatten()
    return kept


def as_masks(encoder: Encoder, kept: Kept) -> dict[Place, Mask]:
    """Return the masks that keep the given units. The output of a sublayer without units is 0, including its bias."""
    masks = {}
    for place, units in kept.items():
        factors = torch.zeros(num_units(encoder, place[1]), device=encoder.model.device)
        factors[units.to(factors.device)] = 1
        masks[place] = Mask(factors, factors.amax())
    return masks


@torch.no_grad()
def remove_units(encoder: Encoder, masks: Mapping[Place, Mask]) -> None:
    """Multiply masks into the closing matrices, and remove the heads, neurons and sublayers whose masks are 0.

    Args:
        encoder: A dense encoder; it is pruned in place.
        masks: The masks of all sublayers. Those of units must not depend on the sample.
    """
    kept: Kept = {}
    for place, mask in masks.items():
        linear = closing(encoder, place)
        output = torch.ones(()) if mask.output is None else mask.output
        units = torch.ones(num_units(encoder, place[1])) if mask.units is None else mask.units
        factors = (units.to(linear.weight) * output.to(linear.weight)).repeat_interleave(
            linear.in_features // len(units)
        )
        linear.weight.mul_(factors)
        if linear.bias is not None:
            linear.bias.mul_(output.to(linear.bias))
        kept[place] = (units.cpu() * output.cpu()).nonzero().flatten()
    apply_plan(encoder, make_mask_plan(encoder, kept))
