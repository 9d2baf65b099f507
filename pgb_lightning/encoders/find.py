"""Find the encoders inside a module."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder, has_layers, model_type_of
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.wrappers import join_path


def find_encoders(module: nn.Module) -> list[Encoder]:
    """Return every encoder of a registered family inside ``module``, ``module`` itself included.

    An encoder with several names, and models that share all of their layers, are one encoder.
    """
    found: list[Encoder] = []
    stacks: list[list[nn.Module]] = []
    for name, child in module.named_modules():
        if isinstance(child, PreTrainedModel) and _is_encoder(child):
            encoder = Encoder(name, child, FAMILIES[model_type_of(child)], root=module)
            if list(encoder.stack) not in stacks:
                found.append(encoder)
                stacks.append(list(encoder.stack))
    return found


def find_encoder(module: nn.Module, name: str | None = None) -> Encoder:
    """Return the one encoder in ``module``, or the one at attribute path ``name``.

    Args:
        module: Any module that holds a transformers encoder among its attributes.
        name: Attribute path such as ``"model.bert"``, or the path of a model that wraps one encoder.

    Raises:
        ValueError: If there is no such attribute, no encoder, more than one encoder, or only encoders of families that
            are not registered.

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
                f"encoder={name!r} is not an attribute path of {type(module).__name__}. Encoders found there: {held}."
            ) from error
    found = find_encoders(root)
    where = type(module).__name__ if name is None else f"encoder={name!r} of {type(module).__name__}"
    if len(found) > 1:
        names = ", ".join(repr(join_path(name, encoder.name)) for encoder in found)
        raise ValueError(f"{where} holds {len(found)} encoders. Set encoder= to the one to prune: {names}.")
    if not found:
        known = ", ".join(sorted(FAMILIES))
        other = sorted({str(m.config.model_type) for m in root.modules() if isinstance(m, PreTrainedModel)})
        if other:
            raise ValueError(
                f"{where} holds a transformers model of type {', '.join(map(repr, other))}, which is not registered. "
                f"Supported types: {known}. Add one with pgb_lightning.encoders.register."
            )
        raise ValueError(
            f"{where} holds no transformers encoder. It must have a model of one of these types among its attributes: "
            f"{known}."
        )
    return Encoder(join_path(name, found[0].name), found[0].model, found[0].family, root=module)


def _is_encoder(model: PreTrainedModel) -> bool:
    """Return whether a model is of a registered family and owns its layers."""
    family = FAMILIES.get(model_type_of(model))
    return family is not None and has_layers(model, family)
