"""Enable the biases that dropped sublayers need in the configuration of a dense twin."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder, model_type_of
from pgb_lightning.surgery.record import transformers_class
from pgb_lightning.surgery.saving import models_around


def switch_on_biases(encoder: Encoder) -> None:
    """Enable the configuration's biases if dropped sublayers of a model without biases were given one, in place.

    The same setting may add biases to modules outside the encoder, such as a language-modeling head. These are zero.

    Args:
        encoder: The pruned encoder of a model that will be dense.
    """
    settings = [
        setting
        for sublayer, setting in encoder.family.bias_settings.items()
        if not getattr(encoder.model.config, setting) and _has_made_bias(encoder, encoder.sublayers[sublayer][-1])
    ]
    if not settings:
        return
    models = [model for model in models_around(encoder) if model_type_of(model) == encoder.model_type]
    for model in models:
        for setting in settings:
            setattr(model.config, setting, True)
    for model in models:
        _add_zero_biases(model, outside=encoder.stack)


def _add_zero_biases(model: PreTrainedModel, outside: nn.Module) -> None:
    """Add zero biases to the linear layers outside a module that have a bias according to the configuration."""
    with torch.device("meta"):
        like = transformers_class(type(model))(model.config)
    inside, modules = set(outside.modules()), dict(model.named_modules())
    for name, module in like.named_modules():
        own = modules.get(name)
        if not isinstance(module, nn.Linear) or not isinstance(own, nn.Linear) or own in inside:
            continue
        if module.bias is not None and dict(own.named_parameters()).get("bias") is None:
            zeros = own.weight.new_zeros(own.out_features)
            own.bias = nn.Parameter(zeros, requires_grad=own.weight.requires_grad)


def _has_made_bias(encoder: Encoder, closing: str) -> bool:
    """Return whether any layer has a bias in a closing matrix."""
    modules = (encoder.find_matrix(layer, closing) for layer in range(encoder.num_layers))
    return any(getattr(module, "bias", None) is not None for module in modules)
