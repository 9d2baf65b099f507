"""The loss of a transformers model on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pgb_lightning.calibration.collect import Loss


def model_loss(model: nn.Module) -> Loss:
    """Return a function that runs a model on a batch and returns ``output.loss``.

    Args:
        model: A transformers model.

    Returns:
        A function of a batch. It raises a TypeError if the batch is not a mapping of the model's arguments, and a
        ValueError if the output has no loss.
    """

    def loss(batch: Any) -> Tensor:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"A batch is a {type(batch).__name__}, but must be a mapping of the model's arguments, such as "
                "{'input_ids': ..., 'attention_mask': ..., 'labels': ...}. For other batches, set loss= to a function "
                "of a batch."
            )
        output = model(**batch)
        if getattr(output, "loss", None) is None:
            raise ValueError(
                f"{type(model).__name__} returned no loss. Provide batches with labels, set fisher='predictions' or "
                "'outputs' for all batches, or set loss= to a function of a batch."
            )
        return output.loss  # type: ignore[no-any-return]

    return loss
