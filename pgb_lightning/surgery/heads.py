"""What else in a layer depends on the heads that are left: position projections, biases and head counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.wrappers import replace_module
from pgb_lightning.layers.linear import ConstantLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.surgery.new_layers import select_features


def follow_heads(encoder: Encoder, layer: int, features: Sequence[int] | None) -> None:
    """Remove the features of removed heads from all that a layer computes for its heads besides the matrices, in place.

    Args:
        encoder: The encoder, in which the matrices are pruned already.
        layer: Layer index.
        features: The features of heads that are left. If omitted, weights are not kept, only their number is right.
    """
    size = as_matrix(encoder.matrix(layer, SUBLAYERS["attention"][-1])).in_features
    for owner, name in _places(encoder, layer, encoder.family.followers):
        old = getattr(owner, name)
        width = old.out_features if isinstance(old, nn.Linear) else len(old)
        if width == size:
            continue
        # A state dict may have more heads than the model.
        left = [n % width for n in range(size)] if features is None else list(features)
        if isinstance(old, nn.Linear):
            replace_module(old, select_features(old, left, of_inputs=False), encoder.roots)
        else:
            setattr(owner, name, nn.Parameter(old.detach()[left], requires_grad=old.requires_grad))
    for owner, name in _places(encoder, layer, encoder.family.head_counts):
        setattr(owner, name, size // encoder.head_size)
    for owner, name in _places(encoder, layer, encoder.family.head_widths):
        setattr(owner, name, size)


def save_heads(encoder: Encoder) -> Callable[[], None]:
    """Return a function that puts parameters and head counts back that :func:`follow_heads` changes.

    Modules are not restored.
    """
    family = encoder.family
    paths = (*family.followers, *family.head_counts, *family.head_widths)
    saved = [
        (owner, name, getattr(owner, name))
        for layer in range(len(encoder.layers))
        for owner, name in _places(encoder, layer, paths)
        if not isinstance(getattr(owner, name), nn.Module)
    ]

    def restore() -> None:
        for owner, name, value in saved:
            setattr(owner, name, value)

    return restore


def reads_positions(encoder: Encoder) -> bool:
    """Return whether a layer still reads what the family calls ``position_modules``."""
    nothing = torch.zeros(0, 1, dtype=torch.bool, device=encoder.model.device)
    readers = [kind for kind, read in encoder.family.also_read.items() if read(encoder.model, nothing) is not None]
    for layer in range(len(encoder.layers)):
        if encoder.is_dropped(layer, "attention"):
            continue
        if not all(isinstance(encoder.matrix(layer, kind), ConstantLinear) for kind in readers):
            return True
        followers = (getattr(owner, name) for owner, name in _places(encoder, layer, encoder.family.followers))
        if any(isinstance(follower, nn.Linear) for follower in followers):
            return True
    return False


def _places(encoder: Encoder, layer: int, paths: Sequence[str]) -> Iterator[tuple[nn.Module, str]]:
    """Yield the module and the attribute's name of each path that a layer has."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        try:
            owner = encoder.layers[layer].get_submodule(parent)
        except AttributeError:  # removed with the sublayer
            continue
        if getattr(owner, name, None) is not None:  # depends on the configuration
            yield owner, name
