"""Find the encoders inside a module."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder, family_name, join_path
from pgb_lightning.encoders.families import FAMILIES


def find_encoders(module: nn.Module) -> list[Encoder]:
    """List every encoder with a known map inside ``module``, ``module`` itself included."""
    return [
        Encoder(name, child, FAMILIES[family_name(child)])
        for name, child in module.named_modules()
        if _is_encoder(child)
    ]


def find_encoder(module: nn.Module, name: str | None = None) -> Encoder:
    """Return the one encoder in ``module``, or the one at attribute path ``name``.

    Args:
        module: Any module that holds a transformers encoder among its attributes.
        name: Attribute path such as ``"model.bert"``; a path to a model that wraps one encoder works too.

    Raises:
        ValueError: There is no such attribute, no encoder, more than one encoder, or only encoders without a
            map; the message says which and what to do.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> find_encoder(BertForSequenceClassification(tiny)).name
        'bert'
    """
    root = module
    if name is not None:
        try:
            root = module.get_submodule(name)
        except AttributeError as error:
            held = ", ".join(repr(found.name) for found in find_encoders(module)) or "none"
            raise ValueError(
                f"encoder={name!r} is no attribute path of {type(module).__name__}; encoders found there: {held}."
            ) from error
    found = find_encoders(root)
    where = type(module).__name__ if name is None else f"encoder={name!r} of {type(module).__name__}"
    if len(found) > 1:
        names = ", ".join(repr(join_path(name, encoder.name)) for encoder in found)
        raise ValueError(f"{where} holds {len(found)} encoders; name the one to prune with encoder=: {names}.")
    if not found:
        known = ", ".join(sorted(FAMILIES))
        unmapped = sorted({str(m.config.model_type) for m in root.modules() if isinstance(m, PreTrainedModel)})
        if unmapped:
            raise ValueError(
                f"{where} holds a transformers model of type {', '.join(map(repr, unmapped))}, for which there "
                f"is no map of its layers; known are: {known}. Add an Family to FAMILIES."
            )
        raise ValueError(
            f"{where} holds no transformers encoder; it must have a model of one of these types among its "
            f"attributes: {known}."
        )
    return Encoder(join_path(name, found[0].name), found[0].model, found[0].family)


def _is_encoder(module: nn.Module) -> bool:
    """Tell the model that owns the layers from the heads that wrap it."""
    if not isinstance(module, PreTrainedModel):
        return False
    architecture = FAMILIES.get(family_name(module))
    if architecture is None:
        return False
    try:
        layers = module.get_submodule(architecture.layers)
    except AttributeError:
        return False
    return isinstance(layers, nn.ModuleList)
