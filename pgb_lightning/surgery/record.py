"""The record of a pruned encoder in ``config.json``: its structure, and the modules that it does not have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from pgb_lightning._compat import registered_models
from pgb_lightning.encoders.base import Encoder, model_type_of
from pgb_lightning.encoders.pruned_config import PrunedConfig, convert_config
from pgb_lightning.surgery.structure import Structure

#: The key of a record for the modules of the encoder's class that the encoder lacks.
ABSENT = "absent"


def make_record(encoder: Encoder, structure: Structure | None = None) -> dict[str, Any]:
    """Return a record of an encoder, as JSON primitives.

    Args:
        encoder: The encoder.
        structure: Its structure, if that is known.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from pgb_lightning.encoders import find_encoder
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> make_record(find_encoder(BertModel(tiny, add_pooling_layer=False)))["absent"]
        ['pooler']
    """
    record = (structure or Structure.of(encoder)).to_record(encoder)
    absent = absent_modules(encoder)
    return record | ({ABSENT: absent} if absent else {})


def build_record(encoder: Encoder, record: Mapping[str, Any], remove_absent: bool = True) -> None:
    """Give a dense encoder the structure of a record, in place.

    Args:
        encoder: The encoder.
        record: The result of :func:`make_record`.
        remove_absent: Whether to remove the modules that the recorded encoder lacks.

    Raises:
        ValueError: If the record cannot be read or does not fit the encoder.
    """
    Structure.from_record(encoder, record).build(encoder)
    if remove_absent:
        remove_modules(encoder, record.get(ABSENT, []))


def recorded_absent(config: PretrainedConfig) -> list[str]:
    """Return the paths of the modules that a recorded encoder lacks or may lack.

    Release 0.1.0 did not record whether there is a pooler.
    """
    record = getattr(config, "pgb", None) or {}
    return list(record.get(ABSENT, [])) if record.get("version", 1) > 1 else ["pooler"]


def absent_modules(encoder: Encoder) -> list[str]:
    """Return the paths of the modules of the encoder's class that the encoder lacks, such as the pooler."""
    found: list[str] = []
    for path, _ in dense_encoder(encoder).model.named_modules():
        parent, _, name = path.rpartition(".")
        try:
            owner = encoder.model.get_submodule(parent)
        except AttributeError:  # the parent is absent, or inside a sublayer that was dropped
            continue
        if name and getattr(owner, name, owner) is None:
            found.append(path)
    return found


def remove_modules(encoder: Encoder, paths: list[str]) -> None:
    """Remove modules of an encoder, in place: their attributes become ``None``."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(encoder.model.get_submodule(parent), name, None)


def dense_encoder(encoder: Encoder) -> Encoder:
    """Return a dense encoder of the same transformers class, configuration and depth, on the meta device.

    Raises:
        ValueError: If layers were removed or moved so that their attention differs from that in the configuration.
    """
    config = dense_config(encoder.model)
    if encoder.family.order is None:  # else it is the number of runs
        config.num_hidden_layers = encoder.num_layers  # The user may have removed layers without changing it.
    with torch.device("meta"):
        model = transformers_class(type(encoder.model))(config)
    dense = Encoder("", model, encoder.family)
    for number, (own, new) in enumerate(zip(encoder.layers, dense.layers, strict=False)):
        found, expected = (getattr(layer, "attention_type", None) for layer in (own, new))
        if found != expected or _lacks_norm(encoder, dense, number):
            raise ValueError(
                f"Layer {number} of the encoder at {encoder.where} is not layer {number} of its configuration: "
                f"layer_types={expected!r} there, {found!r} in the layer. Remove layers from the end only, so that the "
                "others keep their attention and their LayerNorm."
            )
    return dense


def _lacks_norm(encoder: Encoder, dense: Encoder, layer: int) -> bool:
    """Return whether a layer of the configuration lacks a pre-norm that the encoder's layer has."""
    new, own = dense.layers[layer], encoder.layers[layer]
    absent = [norm for norm in encoder.family.norms.values() if isinstance(new.get_submodule(norm), nn.Identity)]
    return not all(isinstance(own.get_submodule(norm), nn.Identity) for norm in absent)


def dense_config(model: PreTrainedModel) -> Any:
    """Return a copy of a model's configuration without the record, as the configuration of a dense model."""
    config = model.config
    if not isinstance(config, PrunedConfig):
        return copy.deepcopy(config)
    dense = next(cls for cls in type(config).__mro__ if getattr(cls, "model_type", "") == model_type_of(model))
    return convert_config(config, dense)


def transformers_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class known to transformers that a model class is derived from, or the class itself.

    For the class of a pruned model, this is the class of the dense model.

    Example:
        >>> from transformers import BertModel
        >>> class MyBert(BertModel):
        ...     '''A subclass, whose constructor may take anything.'''
        >>> transformers_class(MyBert).__name__
        'BertModel'
    """
    dense: type[PreTrainedModel] = getattr(cls, "dense_class", cls)
    return next((each for each in dense.__mro__ if _is_known(each)), dense)


def _is_known(cls: type) -> bool:
    """Return whether a class comes with transformers, or was registered with it as the model of a configuration."""
    registered = registered_models(AutoModel, getattr(cls, "config_class", None))
    return cls.__module__.startswith("transformers.models.") or cls in registered
