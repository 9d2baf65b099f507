"""Lightning's ``ModelPruning`` callback, set to global unstructured magnitude pruning and applied once.

By default the callback prunes at the end of each training epoch. Here it prunes before the first epoch, at the same
point as all other methods. Its masks equal those of :mod:`pgb_lightning.experiments.baselines.magnitude`.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelPruning
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder


def prune_with_model_pruning(model: PreTrainedModel, found: None, ratio: float) -> None:
    """Mask weights with Lightning's ``ModelPruning``.

    Args:
        model: A fine-tuned model; its matrices get masks.
        found: Unused; this method needs no calibration.
        ratio: Fraction of the weights to mask.
    """
    weights = [(linear, "weight") for linear, _ in find_encoder(model).hook_points()]
    callback = ModelPruning("l1_unstructured", weights, amount=ratio, use_lottery_ticket_hypothesis=False)
    module: Any = model  # the callback uses nothing that is specific to a LightningModule
    trainer: Any = None
    callback.setup(trainer, module, "fit")
    callback.apply_pruning(ratio)
