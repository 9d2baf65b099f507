"""AdamW: its fused implementation, and parameter groups with their own weight decay or learning rate."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from transformers import PreTrainedModel

from pgb_lightning._compat import allow_clipping

#: Devices on which torch implements a fused AdamW in all supported versions.
FUSED_DEVICES = {"cpu", "cuda"}


def make_adamw(groups: list[dict[str, Any]], learning_rate: float, trainer: pl.Trainer) -> torch.optim.AdamW:
    """Create AdamW, using the fused implementation if the device and the precision allow it.

    The fused implementation updates all parameters in one call. On a CPU it is many times faster than the default.

    Args:
        groups: Parameter groups.
        learning_rate: The learning rate of groups that have none.
        trainer: The Trainer. With a gradient scaler, Lightning cannot clip the gradients of a fused optimizer.
    """
    plugin = trainer.precision_plugin
    scales = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=devices <= FUSED_DEVICES and not scales)
    if not scales:
        allow_clipping(optimizer)
    return optimizer


def find_embeddings(model: PreTrainedModel) -> nn.Module:
    """Return the part of a transformers model that computes the input of the first layer from token ids.

    This is the module with all tables (tokens, positions, token types) and the normalization of their sum, or the token
    embedding if the model has no such module.
    """
    tokens: nn.Module = model.get_input_embeddings()
    holders = [child for child in model.base_model.children() if any(module is tokens for module in child.modules())]
    return holders[0] if holders else tokens


def parameter_groups(
    root: nn.Module, weight_decay: float, embeddings: nn.Module | None = None, learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Return the parameter groups of a module for AdamW. Only matrices are decayed, not biases and LayerNorms.

    Args:
        root: The module. Parameters without ``requires_grad`` are left out.
        weight_decay: Weight decay of matrices.
        embeddings: A part of the module with its own learning rate, in two further groups.
        learning_rate: The learning rate of ``embeddings``.
    """
    apart = {id(parameter) for parameter in embeddings.parameters()} if embeddings is not None else set()
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    if embeddings is not None:
        groups += [{**group, "params": [], "lr": learning_rate} for group in groups]
    for name, parameter in root.named_parameters():
        if parameter.requires_grad:
            # Decide by shape and not by name only, because the names of LayerNorms differ between models. The weight of
            # a pruned layer has three dimensions.
            is_decayed = parameter.ndim >= 2 and not name.endswith("bias")
            groups[(0 if is_decayed else 1) + (2 if id(parameter) in apart else 0)]["params"].append(parameter)
    return groups
