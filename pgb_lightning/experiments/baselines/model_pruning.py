"""Lightning's own ``ModelPruning``, told to do the same once: global, unstructured, by magnitude.

Left alone, the callback prunes at the end of each training epoch. Here it prunes before the first, so that it is
measured where all others are. Its masks are those of :mod:`pgb_lightning.experiments.baselines.magnitude`.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelPruning
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder


def prune_as_lightning_does(model: PreTrainedModel, found: None, ratio: float) -> None:
    """Mask weights with Lightning's callback.

    Args:
        model: A fine-tuned model; its matrices get masks.
        found: It learns nothing from calibration.
        ratio: Share of the weights to mask.
    """
    weights = [(linear, "weight") for _, linear in find_encoder(model).linears()]
    callback = ModelPruning("l1_unstructured", weights, amount=ratio, use_lottery_ticket_hypothesis=False)
    whole: Any = model  # it looks at nothing that is a LightningModule's alone
    trainer: Any = None
    callback.setup(trainer, whole, "fit")
    callback.apply_pruning(ratio)
