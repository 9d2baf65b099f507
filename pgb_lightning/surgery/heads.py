"""Adapt the other parts of a layer that depend on its heads: position projections, biases and head counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.wrappers import replace_module
from pgb_lightning.layers.linear import ConstantLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.surgery.new_layers import select_features


def follow_heads(encoder: Encoder, layer: int, features: Sequence[int] | None) -> None:
    """Remove the features of removed heads from all other parts of a layer that depend on its heads, in place.

    Args:
        encoder: The encoder, in which the matrices are pruned already.
        layer: Layer index.
        features: The features of the kept heads. If omitted, only the sizes are adapted, and weights are not preserved.
    """
    family, width = encoder.family, encoder.head_size
    size = as_matrix(encoder.matrix(layer, SUBLAYERS["attention"][-1])).in_features
    if family.select_heads is not None:
        core = encoder.layers[layer].get_submodule(family.cores["attention"])
        heads = None if features is None else [feature // width for feature in features[::width]]
        replace_module(core, family.select_heads(encoder.model, core, size // width, heads), encoder.roots)
    for owner, name in _places(encoder, layer, family.followers):
        old = getattr(owner, name)
        present = old.out_features if isinstance(old, nn.Linear) else len(old)
        if present == size:
            continue
        # A state dict to be loaded may have more heads than the model.
        left = [n % present for n in range(size)] if features is None else list(features)
        if isinstance(old, nn.Linear):
            replace_module(old, select_features(old, left, of_inputs=False), encoder.roots)
        else:
            with torch.inference_mode(False):  # A model that is loaded in inference mode can be trained.
                setattr(owner, name, nn.Parameter(old.detach()[left], requires_grad=old.requires_grad))
    for owner, name in _places(encoder, layer, family.head_counts):
        setattr(owner, name, size // width)
    for owner, name in _places(encoder, layer, family.head_widths):
        setattr(owner, name, size)


def kept_features(encoder: Encoder, layer: int) -> list[int] | None:
    """Return the features of a layer's kept heads, as numbered in the dense layer; ``None`` if heads are equivalent.

    Args:
        encoder: The encoder, dense or pruned.
        layer: Layer index.
    """
    core = encoder.layers[layer].get_submodule(encoder.family.cores["attention"])
    heads = getattr(core, "head_index", None)
    if encoder.family.select_heads is None or not isinstance(heads, Tensor):
        return None
    size = encoder.head_size
    return [head * size + feature for head in heads.tolist() for feature in range(size)]


def save_heads(encoder: Encoder) -> Callable[[], None]:
    """Return a function that restores the parameters and head counts that :func:`follow_heads` changes.

    Modules are not restored.
    """
    family = encoder.family
    paths = (*family.followers, *family.head_counts, *family.head_widths)
    saved = [
        (owner, name, getattr(owner, name))
        for layer in range(encoder.num_layers)
        for owner, name in _places(encoder, layer, paths)
        if not isinstance(getattr(owner, name), nn.Module)
    ]

    def restore() -> None:
        for owner, name, value in saved:
            setattr(owner, name, value)

    return restore


def reads_positions(encoder: Encoder) -> bool:
    """Return whether a layer still uses the family's ``position_modules``."""
    nothing = torch.zeros(0, 1, dtype=torch.bool, device=encoder.model.device)
    readers = [kind for kind, read in encoder.family.also_read.items() if read(encoder.model, nothing) is not None]
    for layer in range(encoder.num_layers):
        if encoder.is_dropped(layer, "attention"):
            continue
        if not all(isinstance(encoder.matrix(layer, kind), ConstantLinear) for kind in readers):
            return True
        followers = (getattr(owner, name) for owner, name in _places(encoder, layer, encoder.family.followers))
        if any(isinstance(follower, nn.Linear) for follower in followers):
            return True
    return False


def _places(encoder: Encoder, layer: int, paths: Sequence[str]) -> Iterator[tuple[nn.Module, str]]:
    """Yield the owner and the attribute's name for each of the paths that exist in a layer."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        try:
            owner = encoder.layers[layer].get_submodule(parent)
        except AttributeError:  # removed with the sublayer
            continue
        if getattr(owner, name, None) is not None:  # depends on the configuration
            yield owner, name
