"""A compact record of a grouped encoder's structure: shapes only, since the places are in the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from pgb_lightning.encoders.base import EXPENDABLE, MATRICES, SUBLAYERS, Encoder, join_path
from pgb_lightning.layers.linear import ConstantLinear
from pgb_lightning.surgery.apply import blank_layer, drop_sublayer, feed_in_chunks, put
from pgb_lightning.surgery.from_state_dict import inside_of, matrix_shape

#: Raised whenever the meaning of a record changes.
STRUCTURE_VERSION = 1

#: Stands for a matrix of which nothing is left.
GONE = "gone"

#: Stands in every exported ``config.json``, for whoever opens it wondering why the model does not load.
REQUIRES = (
    "This model was pruned by pgb-lightning and needs it: `pip install pgb-lightning`, then `import pgb_lightning` "
    "before loading."
)


def structure_of(encoder: Encoder) -> dict[str, Any]:
    """Describe what became of each matrix, as read off the encoder's state dict.

    Args:
        encoder: A dense or grouped encoder.

    Returns:
        JSON primitives: for every layer the matrices that are not whole, ``"GxMxN"`` where G blocks of M x N are
        left (words, since JSON files give every number of a list its own line), ``"gone"`` where nothing is; and by
        sublayer, where heads or neurons are gone, how many features or neurons are left.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from pgb_lightning.encoders.base import find_encoder
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        >>> structure_of(find_encoder(BertModel(tiny)))["layers"]
        [{}, {}]
    """
    state = {join_path(encoder.name, name): value for name, value in encoder.model.state_dict().items()}
    layers: list[dict[str, str]] = []
    for number in range(len(encoder.layers)):
        inside = {name: inside_of(encoder, number, name, state) for name in SUBLAYERS}
        shapes: dict[str, str] = {name: str(left) for name, left in inside.items() if left != encoder.inner_size(name)}
        for kind in MATRICES:
            weight = state.get(f"{encoder.path(number, kind)}.weight")
            if weight is None or weight.dim() == 3:
                shapes[kind] = GONE if weight is None else "x".join(map(str, weight.shape))
        layers.append(shapes)
    return {"version": STRUCTURE_VERSION, "requires": REQUIRES, "layers": layers}


def apply_structure(encoder: Encoder, record: Mapping[str, Any] | None) -> None:
    """Give a dense encoder the structure of a record, in place; its weights are still to be loaded.

    Args:
        encoder: A dense encoder.
        record: What :func:`structure_of` returned; ``None`` leaves everything whole.

    Raises:
        ValueError: The record cannot be read, or does not fit the encoder. Nothing has changed then.
    """
    if record is None:
        return
    modules = _make_modules(encoder, _check(encoder, record))
    for (layer, kind), module in modules.items():
        put(encoder, layer, kind, module)
    for layer in range(len(encoder.layers)):
        for sublayer, kinds in SUBLAYERS.items():
            if isinstance(modules.get((layer, kinds[-1])), ConstantLinear):
                drop_sublayer(encoder, layer, sublayer)
        if modules:
            feed_in_chunks(encoder, layer)


def _check(encoder: Encoder, record: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """Require a record of this release's version, with one sensible entry a layer."""
    version = record.get("version") if isinstance(record, Mapping) else None
    if version != STRUCTURE_VERSION:
        raise ValueError(
            f"config.json's pgb record has version={version!r}; this release of pgb-lightning reads version "
            f"{STRUCTURE_VERSION}: use the release that wrote it, or export the model again."
        )
    layers = record.get("layers")
    if not isinstance(layers, list) or len(layers) != len(encoder.layers):
        found = len(layers) if isinstance(layers, list) else "no"
        raise ValueError(f"config.json's pgb record describes {found} layers, the encoder has {len(encoder.layers)}.")
    for number, shapes in enumerate(layers):
        for sublayer in SUBLAYERS:
            left = str(shapes.get(sublayer, encoder.inner_size(sublayer)))
            unit = encoder.attention_unit if sublayer == "attention" else 1
            if not left.isdecimal() or not 0 < int(left) <= encoder.inner_size(sublayer) or int(left) % unit:
                raise ValueError(
                    f"config.json's pgb record has {sublayer!r}: {left!r} for layer {number}; it must be a multiple of "
                    f"{unit} up to {encoder.inner_size(sublayer)}."
                )
        for kind, shape in shapes.items():
            if kind in SUBLAYERS:
                continue
            if kind not in MATRICES or not re.fullmatch(rf"{GONE}|\d+x\d+x\d+", str(shape)):
                raise ValueError(
                    f"config.json's pgb record has {kind!r}: {shape!r} for layer {number}; it must name one of "
                    f"{', '.join(MATRICES)}, and give groups x block inputs x block outputs, such as '2x192x192', or "
                    f"{GONE!r}."
                )
        for kinds in SUBLAYERS.values():
            gone = [kind for kind in kinds if shapes.get(kind) == GONE]
            if set(gone) - set(EXPENDABLE) and len(gone) != len(kinds):
                raise ValueError(
                    f"config.json's pgb record keeps nothing of {gone[-1]} in layer {number}; then the sublayer only "
                    f"adds a constant, and {', '.join(kinds)} must all be {GONE!r}."
                )
    return layers


def _make_modules(encoder: Encoder, layers: list[Mapping[str, str]]) -> dict[tuple[int, str], nn.Module]:
    """Make the layer for each matrix of which something is gone."""
    made: dict[tuple[int, str], nn.Module] = {}
    for number, shapes in enumerate(layers):
        for sublayer, kinds in SUBLAYERS.items():
            inside = int(shapes.get(sublayer, encoder.inner_size(sublayer)))
            for kind in kinds:
                old = encoder.matrix(number, kind)
                assert isinstance(old, nn.Linear)
                shape = shapes.get(kind)
                size = matrix_shape(encoder, kind, inside)
                if shape is None and size == (old.in_features, old.out_features):
                    continue
                blocks = None if shape is None else () if shape == GONE else tuple(map(int, shape.split("x")))
                try:
                    made[number, kind] = blank_layer(old, size, blocks, old.bias is not None)
                except ValueError as error:
                    raise ValueError(f"config.json's pgb record, layer {number} {kind}: {error}") from None
    return made
