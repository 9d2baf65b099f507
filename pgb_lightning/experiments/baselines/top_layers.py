"""Drop whole layers, without compensation.

After Sajjad, Dalvi, Durrani, Nakov: *On the Effect of Dropping Layers of Pre-trained Transformer Models*, Computer
Speech & Language 77, 2023. The authors drop layers before fine-tuning; here layers are dropped from the fine-tuned
model, which is then re-finetuned, as for all other methods. Only whole layers can be removed, so the number of layers
nearest to the requested fraction is used.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder


def drop_layers(
    model: PreTrainedModel,
    found: None,
    ratio: float,
    order: Literal["top", "alternate"] = "top",
) -> None:
    """Drop layers permanently.

    Args:
        model: A fine-tuned model.
        found: Unused; this method needs no calibration.
        ratio: Fraction of the layers to drop; at least one is dropped, and at least one is kept.
        order: ``"top"`` drops the last layers; ``"alternate"`` drops evenly spaced layers, starting from the last.

    Raises:
        ValueError: If the encoder has only one layer, or runs a layer several times.
    """
    encoder = find_encoder(model)
    check_droppable(encoder)
    remove_layers(encoder, choose_layers(encoder.num_layers, num_dropped(encoder.num_layers, ratio), order))


def check_droppable(encoder: Encoder) -> None:
    """Check that there are several layers, each of which runs once.

    Raises:
        ValueError: If the encoder has only one layer, or runs a layer several times.
    """
    total = encoder.num_layers
    if len(encoder.order) > total:
        raise ValueError(
            f"model_type={encoder.model_type!r} runs {total} layer(s) {len(encoder.order)} times, so dropping a layer "
            "is not dropping a run. Use a method that keeps layers."
        )
    if total < 2:
        raise ValueError(
            f"The encoder has {total} layer, and at least one layer must remain. Use a method that keeps layers."
        )


def num_dropped(total: int, ratio: float) -> int:
    """Return the number of layers that is nearest to a fraction: at least one is dropped, and at least one is kept."""
    return min(max(round(ratio * total), 1), total - 1)


def remove_layers(encoder: Encoder, dropped: Collection[int]) -> None:
    """Remove layers permanently.

    Args:
        encoder: The encoder, in which each layer runs once.
        dropped: Indices of the layers.
    """
    stack = encoder.stack
    for layer in sorted(dropped, reverse=True):
        del stack[layer]
    config = encoder.model.config
    config.num_hidden_layers = len(stack)
    if getattr(config, "layer_types", None):  # which attention each layer has, as in ModernBERT
        config.layer_types = [kind for layer, kind in enumerate(config.layer_types) if layer not in dropped]


def choose_layers(total: int, count: int, order: Literal["top", "alternate"]) -> set[int]:
    """Choose the layers to drop.

    Example:
        >>> sorted(choose_layers(6, 3, "top")), sorted(choose_layers(6, 3, "alternate"))
        ([3, 4, 5], [1, 3, 5])
    """
    step = total / count if order == "alternate" else 1
    return {total - 1 - int(step * place) for place in range(count)}
