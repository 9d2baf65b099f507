"""Whole layers go, and nothing makes up for them.

After Sajjad, Dalvi, Durrani, Nakov: *On the Effect of Dropping Layers of Pre-trained Transformer Models*, Computer
Speech & Language 77, 2023. They drop before fine-tuning; here the fine-tuned model loses layers and is re-finetuned, as
with all others. Only multiples of one layer can be removed: the nearest number is taken.
"""

from __future__ import annotations

from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder


def drop_layers(
    model: PreTrainedModel,
    found: None,
    ratio: float,
    order: Literal["top", "alternate"] = "top",
) -> None:
    """Drop layers for good.

    Args:
        model: A fine-tuned model.
        found: It learns nothing from calibration.
        ratio: Share of the layers to drop; at least one goes, and one stays.
        order: ``"top"`` drops the last ones; ``"alternate"`` spreads them evenly, from the last one down.

    Raises:
        ValueError: There is one layer only.
    """
    encoder = find_encoder(model)
    total = len(encoder.layers)
    if total < 2:
        raise ValueError(f"the encoder has {total} layer, and dropping layers must leave one: use another method.")
    dropped = choose_layers(total, min(max(round(ratio * total), 1), total - 1), order)
    stack = encoder.model.get_submodule(encoder.family.layers)
    assert isinstance(stack, nn.ModuleList)
    for layer in sorted(dropped, reverse=True):
        del stack[layer]
    encoder.model.config.num_hidden_layers = len(stack)


def choose_layers(total: int, count: int, order: Literal["top", "alternate"]) -> set[int]:
    """Say which layers to drop.

    Example:
        >>> sorted(choose_layers(6, 3, "top")), sorted(choose_layers(6, 3, "alternate"))
        ([3, 4, 5], [1, 3, 5])
    """
    step = total / count if order == "alternate" else 1
    return {total - 1 - int(step * place) for place in range(count)}
